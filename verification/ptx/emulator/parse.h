// PTX text to decoded instructions.
#pragma once

#include "launch.h"

#include <set>
#include <sstream>

namespace ptx {

struct RegRange {
  u8 size;
  u32 base;
  u32 count;
  bool single;
};
struct Opd {
  enum K { NONE_, REG, IMM, SYM, VEC, MEM, SINK } k = NONE_;
  u8 size = 0;
  u32 off = NONE;
  u64 imm = 0;
  bool neg = false, fimm = false;
  int fsize = 0;
  string name;
  vector<Opd> items;
  vector<Opd> pair;
};

struct Parser {
  Module& M;
  const string s;
  size_t p = 0;
  u32 line = 1;
  u32 loc = 0;
  u32 usedMask = FULL;
  vector<std::map<string, RegRange>> scopes;
  std::map<std::pair<int, u64>, u32> consts;
  std::map<string, u32> labels;
  vector<std::pair<u32, string>> fixups;
  std::map<u32, string> files;
  vector<std::pair<u32, string>> rawLocs;
  std::map<string, u64> symbols;
  std::map<string, GlobalVar*> globalSyms;
  std::map<string, u32> paramIndex;
  struct Flow {
    u32 d;
    u32 s;
  };
  vector<Flow> flows;
  std::map<u32, u64> taint;
  bool inEntry = false;
  int depth = 0;
  u32 minShared = 4, minGlobal = 4;
  Parser(Module& m, const char* t) : M(m), s(t) {}

  [[noreturn]] void fail(const string& what) {
    throw Fatal{"ptx line " + std::to_string(line) + ": " + what};
  }
  void skip() {
    while (p < s.size()) {
      char c = s[p];
      if (c == '\n') {
        line++;
        p++;
      } else if (isspace((unsigned char)c))
        p++;
      else if (c == '/' && s[p + 1] == '/') {
        while (p < s.size() && s[p] != '\n') p++;
      } else if (c == '/' && s[p + 1] == '*') {
        p += 2;
        while (!(s[p] == '*' && s[p + 1] == '/')) {
          if (s[p] == '\n') line++;
          p++;
        }
        p += 2;
      } else
        break;
    }
  }
  string untilAny(const char* stops) {  // comments removed
    string r;
    while (p < s.size() && !strchr(stops, s[p])) {
      if (s[p] == '/' && s[p + 1] == '/') {
        while (p < s.size() && s[p] != '\n') p++;
        continue;
      }
      if (s[p] == '\n') line++;
      r += isspace((unsigned char)s[p]) ? ' ' : s[p];
      p++;
    }
    return r;
  }
  string lineRest() {
    string r;
    while (p < s.size() && s[p] != '\n') r += s[p++];
    size_t c = r.find("//");
    return c == string::npos ? r : r.substr(0, c);
  }
  static string trim(const string& x) {
    size_t a = x.find_first_not_of(" \t\n"), b = x.find_last_not_of(" \t\n");
    return a == string::npos ? "" : x.substr(a, b - a + 1);
  }

  u32 alloc(int size) {
    u32 w = size == 1 ? 4 : size * 32;
    M.regBytes = (M.regBytes + 63) & ~63u;
    u32 o = M.regBytes;
    M.regBytes += w;
    return o;
  }
  static int regSize(const string& t) {
    if (t == "pred") return 1;
    if (t == "b16" || t == "u16" || t == "s16" || t == "f16" || t == "b8" || t == "bf16") return 2;
    if (t == "b32" || t == "u32" || t == "s32" || t == "f32" || t == "f16x2") return 4;
    if (t == "b64" || t == "u64" || t == "s64" || t == "f64") return 8;
    return 0;
  }
  u32 constant(int size, u64 v) {
    if (size == 2) v &= 0xffff;
    if (size == 4) v &= 0xffffffffu;
    if (size == 1) v = v != 0;
    auto key = std::make_pair(size, v);
    auto it = consts.find(key);
    if (it != consts.end()) return it->second;
    u32 o = alloc(size);
    consts[key] = o;
    M.const8.push_back({o, v});
    M.constSize.push_back(u8(size));
    return o;
  }
  bool lookup(const string& n, Opd& o) {
    for (int k = int(scopes.size()) - 1; k >= 0; k--) {
      auto it = scopes[k].find(n);
      if (it != scopes[k].end() && it->second.single) {
        o.k = Opd::REG;
        o.size = it->second.size;
        o.off = it->second.base;
        return true;
      }
      size_t e = n.size();
      while (e > 0 && isdigit((unsigned char)n[e - 1])) e--;
      if (e < n.size()) {
        it = scopes[k].find(n.substr(0, e));
        if (it != scopes[k].end() && !it->second.single) {
          u32 i = atoi(n.c_str() + e), w = it->second.size == 1 ? 64 : it->second.size * 32;
          o.k = Opd::REG;
          o.size = it->second.size;
          o.off = it->second.base + i * w;
          return true;
        }
      }
    }
    return false;
  }
  Opd operand(const string& text) {
    Opd o;
    string t = trim(text);
    if (t.empty()) fail("empty operand");
    if (t[0] == '!') {
      o = operand(t.substr(1));
      o.neg = true;
      return o;
    }
    if (t == "_") {
      o.k = Opd::SINK;
      return o;
    }
    if (t[0] == '{') {
      o.k = Opd::VEC;
      for (auto& x : split(t.substr(1, t.size() - 2))) o.items.push_back(operand(x));
      return o;
    }
    if (t[0] == '[') {
      o.k = Opd::MEM;
      string in = trim(t.substr(1, t.size() - 2));
      size_t plus = in.find_first_of("+-", 1);
      string base = trim(in.substr(0, plus));
      int64_t off = 0;
      if (plus != string::npos) {
        string r = in.substr(plus);
        r.erase(std::remove(r.begin(), r.end(), ' '), r.end());
        size_t q = 0;
        bool neg = false;
        while (q < r.size() && (r[q] == '+' || r[q] == '-')) {
          neg ^= r[q] == '-';
          q++;
        }
        off = int64_t(strtoull(r.c_str() + q, nullptr, 0));
        if (neg) off = -off;
      }
      o.items.push_back(operand(base));
      o.imm = u64(off);
      return o;
    }
    size_t bar = t.find('|');
    if (bar != string::npos && t[0] == '%') {
      o = operand(t.substr(0, bar));
      o.pair.push_back(operand(t.substr(bar + 1)));
      return o;
    }
    if (isdigit((unsigned char)t[0]) || t[0] == '-' || t[0] == '+') {
      o.k = Opd::IMM;
      if (t.size() > 2 && t[0] == '0' && (t[1] == 'f' || t[1] == 'F')) {
        o.imm = strtoull(t.c_str() + 2, nullptr, 16);
        o.fimm = true;
        o.fsize = 4;
      } else if (t.size() > 2 && t[0] == '0' && (t[1] == 'd' || t[1] == 'D')) {
        o.imm = strtoull(t.c_str() + 2, nullptr, 16);
        o.fimm = true;
        o.fsize = 8;
      } else if (t.find('.') != string::npos) {
        o.imm = bits<u64>(strtod(t.c_str(), nullptr));
        o.fimm = true;
        o.fsize = 8;
      } else if (t[0] == '-')
        o.imm = u64(-int64_t(strtoull(t.c_str() + 1, nullptr, 0)));
      else
        o.imm = strtoull(t.c_str(), nullptr, 0);
      return o;
    }
    if (lookup(t, o)) return o;
    if (t[0] == '%') {
      auto it = M.special.find(t);
      u32 off;
      if (it == M.special.end()) {
        off = alloc(t == "%gridid" ? 8 : 4);
        M.special[t] = off;
      } else
        off = it->second;
      o.k = Opd::REG;
      o.size = t == "%gridid" ? 8 : 4;
      o.off = off;
      o.name = t;
      return o;
    }
    o.k = Opd::SYM;
    o.name = t;
    return o;
  }
  static vector<string> split(const string& t) {
    vector<string> r;
    int d = 0;
    string cur;
    for (char c : t) {
      if (c == '{' || c == '[') d++;
      if (c == '}' || c == ']') d--;
      if (c == ',' && d == 0) {
        r.push_back(cur);
        cur.clear();
      } else
        cur += c;
    }
    if (!trim(cur).empty() || !r.empty()) r.push_back(cur);
    return r;
  }
  // Offset in the register file of an operand read as `size` bytes a lane.
  u32 src(const Opd& o, int size, bool f64 = false) {
    if (o.k == Opd::REG) {
      if (o.size != size && o.size != 0 && !(o.size > size))
        fail("operand of " + std::to_string(o.size) + " bytes where " + std::to_string(size) + " are wanted");
      return o.off;
    }
    if (o.k == Opd::IMM) {
      u64 v = o.imm;
      if (o.fimm && o.fsize == 8 && size == 4) v = bits<u32>(float(bits<double>(v)));
      (void)f64;
      return constant(size, v);
    }
    if (o.k == Opd::SYM) return constant(size, symbol(o.name));
    fail("operand");
  }
  u64 symbol(const string& n) {
    auto it = symbols.find(n);
    if (it != symbols.end()) return it->second;
    fail("unknown symbol " + n);
  }
  u32 dst(const Opd& o) {
    if (o.k == Opd::SINK) return NONE;
    if (o.k != Opd::REG) fail("destination");
    return o.off;
  }
  void vec(Ins& I, int k, const Opd& o, int size) {
    vector<Opd> items = o.k == Opd::VEC ? o.items : vector<Opd>{o};
    I.v[k] = M.pool.size();
    I.nv[k] = items.size();
    for (auto& x : items) {
      if (k == 0) I.vsz = x.k == Opd::REG ? x.size : I.vsz ? I.vsz : size;
      M.pool.push_back(x.k == Opd::SINK ? NONE : x.k == Opd::REG ? x.off : src(x, size));
    }
  }
  void flow(const Opd& d, const Opd& x) {
    if (x.k == Opd::VEC) {
      for (auto& y : x.items) flow(d, y);
      return;
    }
    if (d.k == Opd::VEC) {
      for (auto& y : d.items) flow(y, x);
      return;
    }
    if (d.k == Opd::REG && x.k == Opd::REG && d.size >= 4 && x.size >= 4) flows.push_back({d.off, x.off});
    if (d.k == Opd::REG && x.k == Opd::SYM) {
    }
  }
  static Type typeOf(const string& t);
  void decode(Ins& I, string text);

  void run() {
    scopes.emplace_back();
    M.locs.push_back("?");
    while (true) {
      skip();
      if (p >= s.size()) break;
      char c = s[p];
      if (c == '{') {
        p++;
        depth++;
        scopes.emplace_back();
        continue;
      }
      if (c == '}') {
        p++;
        depth--;
        scopes.pop_back();
        if (depth == 0) inEntry = false;
        continue;
      }
      if (c == ';') {
        p++;
        continue;
      }
      if (c == '.') {
        if (!directive()) break;
        continue;
      }
      size_t q = p;
      while (q < s.size() && (isalnum((unsigned char)s[q]) || s[q] == '_' || s[q] == '$' || s[q] == '%')) q++;
      size_t q2 = q;
      while (q2 < s.size() && (s[q2] == ' ' || s[q2] == '\t')) q2++;
      if (q > p && s[q2] == ':' && s[q2 + 1] != ':') {
        labels[s.substr(p, q - p)] = M.code.size();
        p = q2 + 1;
        continue;
      }
      u32 at = line;
      string t = trim(untilAny(";"));
      p++;
      if (!depth) fail("statement outside of a function: " + t);
      Ins I;
      I.line = at;
      I.loc = loc;
      I.text = t;
      I.used = usedMask;
      usedMask = FULL;
      try {
        decode(I, t);
      } catch (Fatal& f) {
        I.kind = K_BAD;
        I.fn = nullptr;
        I.text = t + "   <" + f.what + ">";
      }
      M.code.push_back(I);
    }
    for (auto& f : fixups) {
      auto it = labels.find(f.second);
      if (it == labels.end()) fail("unknown label " + f.second);
      M.code[f.first].target = it->second;
    }
    Ins end;
    end.kind = K_EXIT;
    end.text = "(end)";
    M.code.push_back(end);
    for (auto& r : rawLocs) {  // "file:line:col", with {n} for files
      string t = r.second, out;
      for (size_t k = 0; k < t.size(); k++)
        if (t[k] == '{') {
          size_t e = t.find('}', k);
          out += files[atoi(t.c_str() + k + 1)];
          k = e;
        } else
          out += t[k];
      M.locs[r.first] = out;
    }
    // Parameters that may flow into addresses.
    bool more = true;
    while (more) {
      more = false;
      for (auto& f : flows) {
        auto it = taint.find(f.s);
        if (it == taint.end()) continue;
        u64& d = taint[f.d];
        if ((d | it->second) != d) {
          d |= it->second;
          more = true;
        }
      }
    }
    for (auto& I : M.code)
      if (I.kind == K_MEM && I.space != S_SHARED && I.a != NONE) {
        auto it = taint.find(I.a);
        I.taint = it == taint.end() ? 0 : it->second;
        if (I.cls == C_STG || I.cls == C_ATOMG) M.writtenParams |= I.taint ? I.taint : ~0ull;
      }
    M.sGran = minShared;
    M.gGran = minGlobal;
  }
  bool directive() {
    size_t q = p + 1;
    while (isalnum((unsigned char)s[q]) || s[q] == '_') q++;
    string n = s.substr(p + 1, q - p - 1);
    if (n == "section" || n == "debug") return false;
    if (n == "version" || n == "address_size" || n == "maxnreg" || n == "minnctapersm" || n == "maxntid" ||
        n == "explicitcluster" || n == "reqnctapercluster" || n == "blocksareclusters" || n == "noreturn") {
      lineRest();
      return true;
    }
    if (n == "reqntid") {
      string r = lineRest();
      M.reqntid = atoi(r.c_str() + 8);
      return true;
    }
    if (n == "target") {
      M.arch = trim(lineRest().substr(7));
      return true;
    }
    if (n == "file") {
      string r = lineRest();
      u32 k = atoi(r.c_str() + 5);
      size_t a = r.find('"'), b = r.rfind('"');
      string f = a == string::npos ? "?" : r.substr(a + 1, b - a - 1);
      size_t sl = f.rfind('/');
      files[k] = sl == string::npos ? f : f.substr(sl + 1);
      return true;
    }
    if (n == "loc") {
      std::istringstream in(lineRest());
      string w;
      u32 f, l, c;
      in >> w >> f >> l >> c;
      string t = "{" + std::to_string(f) + "}:" + std::to_string(l) + ":" + std::to_string(c);
      while (in >> w)
        if (w == "inlined_at") {
          in >> f >> l >> c;
          t += " in {" + std::to_string(f) + "}:" + std::to_string(l);
        }
      loc = M.locs.size();
      M.locs.push_back("");
      rawLocs.push_back({loc, t});
      return true;
    }
    if (n == "pragma") {
      string t = untilAny(";");
      p++;
      size_t k = t.find("used_bytes_mask");
      if (k != string::npos) usedMask = strtoul(t.c_str() + k + 16, nullptr, 0);
      return true;
    }
    if (n == "visible" || n == "weak" || n == "extern" || n == "common") {
      p = q;
      skip();
      return s[p] == '.' ? directive() : true;
    }
    if (n == "entry") {
      p = q;
      string name = trim(untilAny("("));
      p++;
      string ps = untilAny(")");
      p++;
      M.entry = name;
      u32 off = 0;
      for (auto& x : split(ps)) {
        std::istringstream in(x);
        string w;
        Param P{"", 0, 0, false};
        u32 align = 0, arr = 0;
        string last;
        while (in >> w) {
          if (w == ".param") continue;
          if (w == ".ptr")
            P.pointer = true;
          else if (w == ".align") {
            in >> align;
          } else if (w[0] == '.') {
            int z = regSize(w.substr(1));
            if (w == ".b8" || w == ".u8" || w == ".s8") z = 1;
            if (z) P.size = z;
          } else
            last = w;
        }
        size_t br = last.find('[');
        if (br != string::npos) {
          arr = atoi(last.c_str() + br + 1);
          last = last.substr(0, br);
          P.size *= arr;
        }
        P.name = last;
        u32 al = arr ? std::max(align, 1u) : P.size;
        off = (off + al - 1) / al * al;
        P.offset = off;
        off += P.size;
        paramIndex[P.name] = M.params.size();
        M.params.push_back(P);
      }
      M.paramBytes = off;
      inEntry = true;
      return true;
    }
    if (n == "reg") {
      p = q;
      string t = trim(untilAny(";"));
      p++;
      size_t e = t.find_first_of(" \t");
      int size = regSize(trim(t.substr(1, e - 1)));
      if (!size) fail("register type in " + t);
      for (auto& x : split(t.substr(e))) {
        string v = trim(x);
        size_t lt = v.find('<');
        RegRange r;
        r.size = size;
        if (lt != string::npos) {
          r.count = atoi(v.c_str() + lt + 1);
          r.single = false;
          M.regBytes = (M.regBytes + 63) & ~63u;
          r.base = M.regBytes;
          M.regBytes += r.count * (size == 1 ? 64 : size * 32);
          scopes.back()[v.substr(0, lt)] = r;
        } else {
          r.count = 1;
          r.single = true;
          r.base = alloc(size);
          scopes.back()[v] = r;
        }
      }
      return true;
    }
    if (n == "shared" || n == "global" || n == "const" || n == "local") {
      p = q;
      string t = untilAny(";");
      p++;
      size_t eq = t.find('=');
      string decl = eq == string::npos ? t : t.substr(0, eq);
      std::istringstream in(decl);
      string w, name;
      u32 align = 1, esz = 1;
      while (in >> w) {
        if (w == ".align")
          in >> align;
        else if (w[0] == '.') {
          int z = regSize(w.substr(1));
          if (w == ".b8" || w == ".u8" || w == ".s8") z = 1;
          if (z) esz = z;
        } else {
          name = w;
          string rest;
          std::getline(in, rest);
          name += rest;
        }
      }
      size_t br = name.find('[');
      u64 cnt = 1;
      if (br != string::npos) {
        cnt = strtoull(name.c_str() + br + 1, nullptr, 10);
        name = trim(name.substr(0, br));
      } else
        name = trim(name);
      if (n == "local") {
        M.localBytes = (M.localBytes + align - 1) / align * align;
        symbols[name] = 16 + M.localBytes;
        M.localBytes += cnt * esz;
        return true;
      }
      if (n == "shared") {
        if (cnt) {
          M.staticShared = (M.staticShared + align - 1) / align * align;
          symbols[name] = SHARED_BASE + M.staticShared;
          M.staticShared += cnt * esz;
          if (M.staticShared) fail("static shared memory is not emulated");
        } else
          symbols[name] = SHARED_BASE;
        return true;
      }
      auto g = std::make_unique<GlobalVar>();
      g->name = name;
      g->align = align;
      g->data.assign(cnt * esz + 16, 0);
      if (eq != string::npos) {
        string init = t.substr(eq + 1);
        size_t a = init.find('{'), b = init.rfind('}');
        auto vals = a == string::npos ? vector<string>{init} : split(init.substr(a + 1, b - a - 1));
        u64 k = 0;
        for (auto& v : vals) {
          u64 x = strtoull(trim(v).c_str(), nullptr, 0);
          if (k + esz <= g->data.size()) memcpy(&g->data[k], &x, esz);
          k += esz;
        }
      }
      g->store.resize(g->data.size() + 64);
      u64 base = (reinterpret_cast<u64>(g->store.data()) + 63) & ~63ull;
      memcpy(reinterpret_cast<u8*>(base), g->data.data(), g->data.size());
      g->addr = base;
      symbols[name] = base;
      M.globals.push_back(std::move(g));
      return true;
    }
    if (n == "func") {
      p = q;
      untilAny(";{");
      if (s[p] == ';') p++;
      return true;
    }
    if (n == "b8" || n == "b32" || n == "b64") {
      lineRest();
      return true;
    }
    fail("directive ." + n);
  }
};

}  // namespace ptx
