// One instruction: text to a function and operands.
#pragma once

#include "parse.h"
#include "tensor.h"

namespace ptx {

Type Parser::typeOf(const string& t) {
  static const std::map<string, Type> m = {
      {"pred", T_PRED},     {"b8", T_B8},       {"u8", T_U8},       {"s8", T_S8},      {"b16", T_B16},
      {"u16", T_U16},       {"s16", T_S16},     {"f16", T_F16},     {"bf16", T_BF16},  {"b32", T_B32},
      {"u32", T_U32},       {"s32", T_S32},     {"f32", T_F32},     {"tf32", T_TF32},  {"f16x2", T_F16X2},
      {"bf16x2", T_BF16X2}, {"b64", T_B64},     {"u64", T_U64},     {"s64", T_S64},    {"f64", T_F64},
      {"b128", T_B128},     {"f32x2", T_F32X2}, {"u16x2", T_U16X2}, {"s16x2", T_S16X2}};
  auto it = m.find(t);
  return it == m.end() ? T_NONE : it->second;
}
#define INT_OF(F, ...)                                                  \
  (t == T_S16 || t == T_U16 || t == T_B16   ? (Fn)F<u16, ##__VA_ARGS__> \
   : t == T_S32 || t == T_U32 || t == T_B32 ? (Fn)F<u32, ##__VA_ARGS__> \
   : t == T_S64 || t == T_U64 || t == T_B64 ? (Fn)F<u64, ##__VA_ARGS__> \
                                            : nullptr)
#define SIGNED_OF(F, ...)                                 \
  (t == T_S16                 ? (Fn)F<s16, ##__VA_ARGS__> \
   : t == T_U16 || t == T_B16 ? (Fn)F<u16, ##__VA_ARGS__> \
   : t == T_S32               ? (Fn)F<s32, ##__VA_ARGS__> \
   : t == T_U32 || t == T_B32 ? (Fn)F<u32, ##__VA_ARGS__> \
   : t == T_S64               ? (Fn)F<s64, ##__VA_ARGS__> \
   : t == T_U64 || t == T_B64 ? (Fn)F<u64, ##__VA_ARGS__> \
                              : nullptr)
#define FLOAT_OF(F, OP)                                             \
  (t == T_F32      ? (z ? (Fn)F<float, Ftz<OP>> : (Fn)F<float, OP>) \
   : t == T_F64    ? (Fn)F<double, OP>                              \
   : t == T_F16    ? (Fn)F<u16, Half<H, OP>>                        \
   : t == T_BF16   ? (Fn)F<u16, Half<B, OP>>                        \
   : t == T_F16X2  ? (Fn)F<u32, Half2<H, OP>>                       \
   : t == T_BF16X2 ? (Fn)F<u32, Half2<B, OP>>                       \
                   : nullptr)
template <class T>
static Fn cmpInt(const string& c) {
  if (c == "eq") return setp<T, Eq>;
  if (c == "ne") return setp<T, Ne>;
  if (c == "lt" || c == "lo") return setp<T, Lt>;
  if (c == "le" || c == "ls") return setp<T, Le>;
  if (c == "gt" || c == "hi") return setp<T, Gt>;
  if (c == "ge" || c == "hs") return setp<T, Ge>;
  return nullptr;
}
template <class T>
static Fn cmpFloat(const string& c) {
  if (c == "eq") return setp<T, Eq>;
  if (c == "ne") return setp<T, FNe>;
  if (c == "lt") return setp<T, Lt>;
  if (c == "le") return setp<T, Le>;
  if (c == "gt") return setp<T, Gt>;
  if (c == "ge") return setp<T, Ge>;
  if (c == "equ") return setp<T, Equ>;
  if (c == "neu") return setp<T, Neu>;
  if (c == "ltu") return setp<T, Ltu>;
  if (c == "leu") return setp<T, Leu>;
  if (c == "gtu") return setp<T, Gtu>;
  if (c == "geu") return setp<T, Geu>;
  if (c == "num") return setp<T, Num>;
  if (c == "nan") return setp<T, Nan>;
  return nullptr;
}
template <class H_>
static Fn cmpHalf(const string& c) {
  if (c == "eq") return setpH<H_, Eq>;
  if (c == "ne") return setpH<H_, FNe>;
  if (c == "lt") return setpH<H_, Lt>;
  if (c == "le") return setpH<H_, Le>;
  if (c == "gt") return setpH<H_, Gt>;
  if (c == "ge") return setpH<H_, Ge>;
  if (c == "equ") return setpH<H_, Equ>;
  if (c == "neu") return setpH<H_, Neu>;
  if (c == "ltu") return setpH<H_, Ltu>;
  if (c == "leu") return setpH<H_, Leu>;
  if (c == "gtu") return setpH<H_, Gtu>;
  if (c == "geu") return setpH<H_, Geu>;
  if (c == "num") return setpH<H_, Num>;
  if (c == "nan") return setpH<H_, Nan>;
  return nullptr;
}

void Parser::decode(Ins& I, string text) {
  string t0 = text;
  if (t0[0] == '@') {
    size_t e = t0.find_first_of(" \t");
    string g = t0.substr(1, e - 1);
    I.hasP = true;
    if (g[0] == '!') {
      I.negP = true;
      g = g.substr(1);
    }
    I.p = operand(g).off;
    t0 = trim(t0.substr(e));
  }
  size_t e = t0.find_first_of(" \t{[");
  string op = t0.substr(0, e), rest = e == string::npos ? "" : trim(t0.substr(e));
  vector<string> tok;
  {
    string cur;
    for (size_t k = 0; k < op.size(); k++) {
      if (op[k] == '.') {
        tok.push_back(cur);
        cur.clear();
      } else
        cur += op[k];
    }
    tok.push_back(cur);
  }
  auto has = [&](const char* x) { return std::find(tok.begin() + 1, tok.end(), x) != tok.end(); };
  const string& base = tok[0];
  Type t = typeOf(tok.back());
  I.t = t;
  bool z = has("ftz");
  int sz = sizeOf(t);
  auto finish = [&](Fn f) {
    if (!f) fail("no such operation");
    I.fn = f;
  };

  if (base == "bra") {
    I.kind = K_BRA;
    I.cls = C_BRANCH;
    fixups.push_back({u32(M.code.size()), rest});
    return;
  }
  if (base == "ret" || base == "exit") {
    I.kind = K_EXIT;
    I.cls = C_BRANCH;
    return;
  }
  vector<Opd> o;
  if (!rest.empty())
    for (auto& x : split(rest)) o.push_back(operand(x));
  auto need = [&](size_t n) {
    if (o.size() < n) fail("operands");
  };
  auto flowAll = [&] {
    for (size_t k = 1; k < o.size(); k++) flow(o[0], o[k]);
  };
  bool fl = isFloat(t) || t == T_F16X2 || t == T_BF16X2 || t == T_F32X2;
  I.cls = t == T_F64 ? C_F64 : fl ? C_F32 : C_INT;
  auto opn = [&](int n, int s) {
    need(n + 1);
    I.d = dst(o[0]);
    I.a = src(o[1], s);
    if (n > 1) I.b = src(o[2], s);
    if (n > 2) I.c = src(o[3], s);
    flowAll();
  };

  if (base == "bar" || base == "barrier") {
    I.cls = C_BAR;
    if (has("warp")) {
      I.kind = K_SYNC;
      I.fn = warpSync;
      I.member = src(o[0], 4);
      return;
    }
    if (!(has("sync"))) fail("only bar.sync is emulated");
    I.kind = K_BAR;
    I.a = src(o[0], 4);
    I.b = o.size() > 1 ? src(o[1], 4) : NONE;
    return;
  }
  if (base == "fence" || base == "membar") {
    I.cls = C_OTHER;
    I.kind = K_MEM;
    I.space = S_SHARED;
    if (has("proxy")) {
      I.kind = K_NOP;
      return;
    }
    M.hasFence = true;
    I.fn = fence;
    return;
  }
  if (base == "nanosleep" || base == "prefetch" || base == "prefetchu" || base == "griddepcontrol" ||
      base == "discard" || base == "applypriority" || base == "setmaxnreg") {
    I.kind = K_NOP;
    return;
  }
  if (base == "trap" || base == "brkpt") {
    fail("trap");
  }

  // ------------------------------------------------------------------------------------------------ memory
  auto spaceOf = [&] {
    return has("global")                         ? S_GLOBAL
           : has("shared") || has("shared::cta") ? S_SHARED
           : has("param")                        ? S_PARAM
           : has("const")                        ? S_CONST
           : has("local")                        ? S_LOCAL
                                                 : S_GENERIC;
  };
  auto semOf = [&] {
    return has("acquire")    ? M_ACQUIRE
           : has("release")  ? M_RELEASE
           : has("acq_rel")  ? M_ACQ_REL
           : has("relaxed")  ? M_RELAXED
           : has("volatile") ? M_VOLATILE
                             : M_WEAK;
  };
  auto address = [&](const Opd& m) {
    if (m.k != Opd::MEM) fail("address");
    const Opd& b = m.items[0];
    I.imm = int64_t(m.imm);
    if (b.k == Opd::REG) {
      I.a = b.off;
      I.szA = b.size;
    } else if (b.k == Opd::SYM)
      I.imm += int64_t(symbol(b.name));
    else if (b.k == Opd::IMM)
      I.imm += int64_t(b.imm);
    else
      fail("address");
  };
  auto grain = [&](int n) {
    n = std::min(n, 4);
    if (I.space == S_SHARED || I.space == S_GENERIC) minShared = std::min<u32>(minShared, n);
    if (I.space == S_GLOBAL || I.space == S_GENERIC) minGlobal = std::min<u32>(minGlobal, n);
  };
  if (base == "ld" || base == "ldu") {
    I.space = Space(spaceOf());
    I.sem = Sem(semOf());
    I.esz = sz;
    I.flag = isSigned(t);
    vec(I, 0, o[0], sz);
    if (I.space == S_PARAM) {
      I.cls = C_MOV;
      I.kind = K_ALU;
      I.fn = ldParam;
      const Opd& m = o[1];
      string n = m.items[0].name;
      auto it = paramIndex.find(n);
      if (it == paramIndex.end()) fail("parameter " + n);
      I.imm = M.params[it->second].offset + int64_t(m.imm);
      if (M.params[it->second].pointer && it->second < 64)
        for (int k = 0; k < I.nv[0]; k++) taint[M.pool[I.v[0] + k]] |= 1ull << it->second;
      return;
    }
    address(o[1]);
    I.kind = K_MEM;
    I.cls = I.space == S_SHARED ? C_LDS : C_LDG;
    I.fn = ld;
    grain(sz);
    return;
  }
  if (base == "st") {
    I.space = Space(spaceOf());
    I.sem = Sem(semOf());
    I.esz = sz;
    address(o[0]);
    vec(I, 0, o[1], sz);
    if (I.space == S_PARAM) fail("memory space");
    I.kind = K_MEM;
    I.cls = I.space == S_SHARED ? C_STS : C_STG;
    I.fn = st;
    grain(sz);
    return;
  }
  if (base == "atom" || base == "red") {
    I.space = Space(spaceOf());
    I.sem = Sem(semOf());
    if (I.sem == M_WEAK) I.sem = M_RELAXED;
    I.esz = sz;
    I.kind = K_MEM;
    I.cls = I.space == S_SHARED ? C_ATOMS : C_ATOMG;
    I.fn = atom;
    I.vsz = sz;
    static const std::map<string, AtomOp> ops = {
        {"add", A_ADD}, {"min", A_MIN},   {"max", A_MAX}, {"and", A_AND}, {"or", A_OR},
        {"xor", A_XOR}, {"exch", A_EXCH}, {"cas", A_CAS}, {"inc", A_INC}, {"dec", A_DEC}};
    bool found = false;
    for (auto& x : tok) {
      auto it = ops.find(x);
      if (it != ops.end()) {
        I.op = it->second;
        found = true;
      }
    }
    if (!found) fail("atomic");
    size_t k = 0;
    if (base == "atom") {
      if (o[0].k != Opd::SINK && o[0].k != Opd::VEC) {
        I.d = dst(o[0]);
        I.szD = o[0].size;
      } else if (o[0].k == Opd::VEC) {
        if (o[0].items.size() != 1) fail("vector atomic");
        I.d = dst(o[0].items[0]);
        I.szD = o[0].items[0].size;
      }
      k = 1;
    }
    address(o[k]);
    Opd v = o[k + 1];
    if (v.k == Opd::VEC && v.items.size() == 1) v = v.items[0];
    if (v.k == Opd::VEC) {
      vec(I, 0, v, sz);
    } else {
      I.b = src(v, sz);
      I.vsz = v.k == Opd::REG ? v.size : sz;
    }
    if (o.size() > k + 2) I.c = src(o[k + 2], sz);
    grain(sz);
    return;
  }
  if (base == "cp") {
    if (!has("async") || has("bulk") || has("mbarrier")) fail("not emulated");
    I.cls = C_CPASYNC;
    if (has("commit_group")) {
      I.kind = K_SYNC;
      I.needAll = true;
      I.fn = cpCommit;
      return;
    }
    if (has("wait_group") || has("wait_all")) {
      I.kind = K_SYNC;
      I.needAll = true;
      I.fn = cpWait;
      I.imm = has("wait_all") ? 0 : int64_t(o[0].imm);
      I.flag = has("wait_all");
      return;
    }
    Ins save = I;
    address(o[0]);
    u32 da = I.a;
    u8 dsz = I.szA;
    int64_t doff = I.imm;
    if (da == NONE) {
      da = constant(4, u64(doff));
      dsz = 4;
      doff = 0;
    }
    I = save;
    I.space = S_GLOBAL;
    address(o[1]);
    I.d = da;
    I.szD = dsz;
    I.v[1] = u32(doff);
    I.esz = u8(o[2].imm);
    I.kind = K_MEM;
    I.fn = cpAsync;
    if (o.size() > 3 && o[3].k != Opd::SINK) {
      if (o[3].k == Opd::REG && o[3].size == 1) fail("ignore-src");
      I.c = src(o[3], 4);
    }
    return;
  }
  if (base == "ldmatrix" || base == "stmatrix") {
    I.kind = K_SYNC;
    I.needAll = true;
    I.cls = C_LDSM;
    I.space = S_SHARED;
    I.sub = has("trans");
    if (!has("m8n8") || !has("b16")) fail("shape");
    if (base == "ldmatrix") {
      vec(I, 0, o[0], 4);
      address(o[1]);
      I.fn = ldmatrix;
    } else {
      address(o[0]);
      vec(I, 0, o[1], 4);
      I.fn = stmatrix;
    }
    return;
  }
  // ------------------------------------------------------------------------------------------------ between
  // lanes
  if (base == "shfl") {
    I.kind = K_SYNC;
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    if (!o[0].pair.empty()) I.d2 = dst(o[0].pair[0]);
    I.a = src(o[1], 4);
    I.b = src(o[2], 4);
    I.c = src(o[3], 4);
    I.member = src(o[4], 4);
    I.sub = has("up") ? 0 : has("down") ? 1 : has("bfly") ? 2 : 3;
    I.fn = shfl;
    flow(o[0], o[1]);
    return;
  }
  if (base == "redux") {
    I.kind = K_SYNC;
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    I.a = src(o[1], 4);
    I.member = src(o[2], 4);
    I.op = has("add")   ? A_ADD
           : has("min") ? A_MIN
           : has("max") ? A_MAX
           : has("and") ? A_AND
           : has("or")  ? A_OR
                        : A_XOR;
    I.flag = has("NaN");
    I.fn = redux;
    if (has("abs")) fail("redux.abs");
    return;
  }
  if (base == "vote") {
    I.kind = K_SYNC;
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    I.a = src(o[1], 1);
    I.negC = o[1].neg;
    I.member = src(o[2], 4);
    I.sub = has("all") ? 0 : has("any") ? 1 : has("uni") ? 2 : 3;
    I.fn = vote;
    return;
  }
  if (base == "match") {
    I.kind = K_SYNC;
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    if (!o[0].pair.empty()) I.d2 = dst(o[0].pair[0]);
    I.a = src(o[1], sz);
    I.szA = sz;
    I.member = src(o[2], 4);
    I.sub = has("all");
    I.fn = matchAny;
    return;
  }
  if (base == "activemask") {
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    I.fn = activeMask;
    return;
  }
  if (base == "elect") {
    I.kind = K_SYNC;
    I.cls = C_SHFL;
    I.d = dst(o[0]);
    if (!o[0].pair.empty()) I.d2 = dst(o[0].pair[0]);
    I.member = src(o[1], 4);
    I.fn = elect;
    return;
  }
  // ------------------------------------------------------------------------------------------------ matrices
  if (base == "mma") {
    I.kind = K_SYNC;
    I.needAll = true;
    I.cls = C_MMA;
    string shape;
    vector<Type> types;
    for (auto& x : tok) {
      if (x[0] == 'm' && isdigit((unsigned char)x[1])) shape = x;
      Type y = typeOf(x);
      if (y != T_NONE) types.push_back(y);
    }
    if (types.size() != 4 || !has("row") || !has("col")) fail("mma form");
    int mm, nn, kk;
    sscanf(shape.c_str(), "m%dn%dk%d", &mm, &nn, &kk);
    I.sub = kk;
    I.t = types[1];
    int rs = types[1] == T_F64 ? 8 : 4;
    for (int k = 0; k < 4; k++) vec(I, k, o[k], rs);
    if (types[1] == T_F64) {
      I.flag = mm;
      I.fn = mmaF64;
      return;
    }
    if (mm != 16 || nn != 8 || kk > 16 || (types[1] != T_F16 && types[1] != T_BF16 && types[1] != T_TF32))
      fail("mma shape");
    I.flag = types[0] == T_F16;
    I.fn = mma;
    return;
  }
  if (base == "wgmma") {
    I.kind = K_SYNC;
    I.needAll = true;
    I.cls = C_WGMMA;
    if (has("fence")) {
      I.fn = warpSync;
      return;
    }
    if (has("commit_group")) {
      I.fn = wgmmaCommit;
      return;
    }
    if (has("wait_group")) {
      I.fn = wgmmaWait;
      I.imm = int64_t(o[0].imm);
      return;
    }
    string shape;
    vector<Type> types;
    for (auto& x : tok) {
      if (x[0] == 'm' && isdigit((unsigned char)x[1])) shape = x;
      Type y = typeOf(x);
      if (y != T_NONE) types.push_back(y);
    }
    int mm, nn, kk;
    sscanf(shape.c_str(), "m%dn%dk%d", &mm, &nn, &kk);
    if (types.size() != 3 || types[0] != T_F32) fail("wgmma form");
    I.t = types[1];
    I.sub = kk;
    if (I.t != T_F16 && I.t != T_BF16 && I.t != T_TF32) fail("wgmma type");
    vec(I, 0, o[0], 4);
    if (o[1].k == Opd::VEC)
      vec(I, 1, o[1], 4);
    else
      I.a = src(o[1], 8);
    I.b = src(o[2], 8);
    if (o[3].k == Opd::IMM)
      I.flag = o[3].imm != 0;
    else {
      I.c = o[3].off;
      I.negC = o[3].neg;
    }
    I.imm = nn;
    if (int64_t(o[4].imm) < 0) I.imm |= 1 << 16;
    if (int64_t(o[5].imm) < 0) I.imm |= 1 << 17;
    if (o[1].k == Opd::VEC) {
      if (o.size() > 6 && o[6].imm) I.imm |= 1 << 19;
    } else {
      if (o.size() > 6 && o[6].imm) I.imm |= 1 << 18;
      if (o.size() > 7 && o[7].imm) I.imm |= 1 << 19;
    }
    I.fn = wgmmaIssue;
    minShared = std::min<u32>(minShared, 4);
    return;
  }
  // ------------------------------------------------------------------------------------------------ moves
  if (base == "mov") {
    I.cls = C_MOV;
    need(2);
    if (t == T_PRED) {
      I.cls = C_PRED;
      I.d = dst(o[0]);
      I.a = src(o[1], 1);
      finish(predMov);
      return;
    }
    if (o[0].k == Opd::VEC) {
      I.a = src(o[1], sz);
      I.szA = o[1].k == Opd::REG ? o[1].size : sz;
      vec(I, 0, o[0], sz / int(o[0].items.size()));
      if (I.vsz == 0) I.vsz = sz / o[0].items.size();
      for (auto& x : o[0].items)
        if (x.k == Opd::REG) I.vsz = x.size;
      finish(unpack);
      flowAll();
      return;
    }
    if (o[1].k == Opd::VEC) {
      I.d = dst(o[0]);
      I.szD = o[0].size;
      vec(I, 0, o[1], sz / int(o[1].items.size()));
      finish(pack);
      flowAll();
      return;
    }
    if (o[1].k == Opd::REG && (o[1].name == "%clock" || o[1].name == "%clock64" ||
                               o[1].name == "%globaltimer" || o[1].name == "%clock_hi")) {
      I.d = dst(o[0]);
      I.szD = o[0].size;
      finish(readClock);
      return;
    }
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    flowAll();
    if (o[1].k == Opd::REG && o[1].size < o[0].size) fail("mov of another size");
    finish(sz == 2 ? (Fn)un<u16, Mov> : sz == 4 ? (Fn)un<u32, Mov> : (Fn)un<u64, Mov>);
    return;
  }
  if (base == "cvta") {
    I.cls = C_MOV;
    I.d = dst(o[0]);
    I.a = src(o[1], 8);
    I.sub = has("shared") || has("shared::cta") ? (has("to") ? 2 : 1)
            : has("local")                      ? (has("to") ? 4 : 3)
                                                : 0;
    flowAll();
    finish(cvta);
    return;
  }
  if (base == "isspacep") {
    I.cls = C_PRED;
    I.d = dst(o[0]);
    I.a = src(o[1], 8);
    I.sub = spaceOf();
    finish(isShared);
    return;
  }
  if (base == "selp") {
    I.cls = C_MOV;
    need(4);
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    I.b = src(o[2], sz);
    I.c = src(o[3], 1);
    I.negC = o[3].neg;
    flow(o[0], o[1]);
    flow(o[0], o[2]);
    finish(sz == 2 ? (Fn)selp<u16> : sz == 4 ? (Fn)selp<u32> : (Fn)selp<u64>);
    return;
  }
  if (base == "setp") {
    I.cls = C_PRED;
    I.d = dst(o[0]);
    if (!o[0].pair.empty()) I.d2 = dst(o[0].pair[0]);
    I.a = src(o[1], sz);
    I.b = src(o[2], sz);
    if (o.size() > 3) {
      I.c = src(o[3], 1);
      I.negC = o[3].neg;
      I.sub = has("and") ? 1 : has("or") ? 2 : 3;
    }
    const string& c = tok[1];
    finish(t == T_F32                 ? cmpFloat<float>(c)
           : t == T_F64               ? cmpFloat<double>(c)
           : t == T_F16               ? cmpHalf<H>(c)
           : t == T_BF16              ? cmpHalf<B>(c)
           : t == T_S16               ? cmpInt<s16>(c)
           : t == T_U16 || t == T_B16 ? cmpInt<u16>(c)
           : t == T_S32               ? cmpInt<s32>(c)
           : t == T_U32 || t == T_B32 ? cmpInt<u32>(c)
           : t == T_S64               ? cmpInt<s64>(c)
           : t == T_U64 || t == T_B64 ? cmpInt<u64>(c)
                                      : nullptr);
    return;
  }
  // ------------------------------------------------------------------------------------------------
  // conversions
  if (base == "cvt") {
    I.cls = C_CVT;
    vector<Type> types;
    for (size_t k = 1; k < tok.size(); k++) {
      Type y = typeOf(tok[k]);
      if (y != T_NONE) types.push_back(y);
    }
    if (types.size() != 2) fail("cvt");
    I.t = types[0];
    I.t2 = types[1];
    I.flag = (z ? 1 : 0) | (has("sat") || has("satfinite") ? 2 : 0) | (has("relu") ? 4 : 0) |
             (has("rz") ? 8 : 0) | (has("rna") ? 16 : 0);
    I.sub = has("rni") ? 1 : has("rzi") ? 2 : has("rmi") ? 3 : has("rpi") ? 4 : 0;
    if (has("rm") || has("rp") || has("rs")) fail("rounding");
    I.d = dst(o[0]);
    if (I.t == T_BF16X2 || I.t == T_F16X2) {
      if (o.size() != 3 || I.t2 != T_F32) fail("cvt");
      I.a = src(o[1], 4);
      I.b = src(o[2], 4);
      finish(cvtX2);
      return;
    }
    if (sizeOf(I.t) < 2 && o[0].k == Opd::REG && isFloat(I.t2)) fail("cvt");
    I.szD = o[0].size;
    I.szA = o[1].k == Opd::REG ? o[1].size : std::max(2, sizeOf(I.t2));
    I.a = src(o[1], I.szA);
    flowAll();
    if (I.flag == 0 && I.szD == sizeOf(I.t) && I.szA == sizeOf(I.t2)) {
      if (I.t == T_S64 && I.t2 == T_S32) {
        finish(conv<s64, s32, CSext32>);
        return;
      }
      if ((I.t == T_U64 || I.t == T_S64) && I.t2 == T_U32) {
        finish(conv<u64, u32, CZext32>);
        return;
      }
      if (I.t == T_U32 && (I.t2 == T_U64)) {
        finish(conv<u32, u64, CLow>);
        return;
      }
      if (I.t == T_F32 && I.t2 == T_BF16) {
        finish(conv<float, u16, CBf>);
        return;
      }
      if (I.t == T_F32 && I.t2 == T_F16) {
        finish(conv<float, u16, CHf>);
        return;
      }
      if (I.t == T_F64 && I.t2 == T_F32) {
        finish(conv<double, float, CFd>);
        return;
      }
      if (I.t == T_F32 && I.t2 == T_S32) {
        finish(conv<float, s32, CS32f>);
        return;
      }
      if (I.t == T_S32 && I.t2 == T_F32 && I.sub == 2) {
        finish(rziS32);
        return;
      }
    }
    finish(cvtAny);
    return;
  }
  // ------------------------------------------------------------------------------------------------
  // predicates and bits
  if (t == T_PRED) {
    I.cls = C_PRED;
    I.d = dst(o[0]);
    I.a = src(o[1], 1);
    if (base == "not") {
      finish(predNot);
      return;
    }
    I.b = src(o[2], 1);
    finish(base == "and"   ? (Fn)pred2<And>
           : base == "or"  ? (Fn)pred2<Or>
           : base == "xor" ? (Fn)pred2<Xor>
                           : nullptr);
    return;
  }
  if (base == "and" || base == "or" || base == "xor") {
    opn(2, sz);
    finish(base == "and" ? INT_OF(bin, And) : base == "or" ? INT_OF(bin, Or) : INT_OF(bin, Xor));
    return;
  }
  if (base == "not") {
    opn(1, sz);
    finish(INT_OF(un, Not));
    return;
  }
  if (base == "cnot") {
    opn(1, sz);
    finish(INT_OF(un, CNot));
    return;
  }
  if (base == "shl" || (base == "shr")) {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    I.b = src(o[2], 4);
    flow(o[0], o[1]);
    finish(base == "shl" ? INT_OF(shf, Shl) : SIGNED_OF(shf, Shr));
    return;
  }
  if (base == "shf") {
    opn(3, 4);
    I.sub = (has("r") ? 1 : 0) | (has("clamp") ? 2 : 0);
    finish(funnel);
    return;
  }
  if (base == "prmt") {
    if (tok.size() != 2) fail("prmt mode");
    opn(3, 4);
    finish(prmt);
    return;
  }
  if (base == "lop3") {
    opn(3, 4);
    I.imm = o[4].imm;
    finish(lop3);
    return;
  }
  if (base == "bfe") {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    I.b = src(o[2], 4);
    I.c = src(o[3], 4);
    finish(t == T_U32 ? (Fn)bfe<u32> : t == T_S32 ? (Fn)bfe<s32> : t == T_U64 ? (Fn)bfe<u64> : (Fn)bfe<s64>);
    return;
  }
  if (base == "bfi") {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    I.b = src(o[2], sz);
    I.c = src(o[3], 4);
    I.e = src(o[4], 4);
    finish(sz == 4 ? (Fn)bfi<u32> : (Fn)bfi<u64>);
    return;
  }
  if (base == "popc") {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    finish(sz == 4 ? (Fn)popcT<u32> : (Fn)popcT<u64>);
    return;
  }
  if (base == "clz") {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    finish(sz == 4 ? (Fn)clzT<u32> : (Fn)clzT<u64>);
    return;
  }
  if (base == "brev") {
    opn(1, sz);
    finish(sz == 4 ? (Fn)un<u32, BRev> : (Fn)un<u64, BRev>);
    return;
  }
  if (base == "bfind") {
    I.d = dst(o[0]);
    I.a = src(o[1], sz);
    I.sub = has("shiftamt");
    finish(t == T_U32   ? (Fn)bfind<u32>
           : t == T_S32 ? (Fn)bfind<s32>
           : t == T_U64 ? (Fn)bfind<u64>
                        : (Fn)bfind<s64>);
    return;
  }
  // ------------------------------------------------------------------------------------------------
  // arithmetic
  if (has("sat") || has("rz") || has("rm") || has("rp") || has("cc") || base == "addc" || base == "subc" ||
      base == "madc")
    fail("modifier");
  if (t == T_U16X2 || t == T_S16X2) {
    opn(2, 4);
    if (base == "add")
      finish(bin<u32, Int2<u16, Add>>);
    else if (base == "min")
      finish(t == T_S16X2 ? (Fn)bin<u32, Int2<s16, MinI>> : (Fn)bin<u32, Int2<u16, MinI>>);
    else
      finish(base == "max" ? (t == T_S16X2 ? (Fn)bin<u32, Int2<s16, MaxI>> : (Fn)bin<u32, Int2<u16, MaxI>>)
                           : nullptr);
    return;
  }
  if (t == T_F32X2 && !z) {
    if (base == "fma") {
      opn(3, 8);
      finish(tri<u64, Pair<FFma>>);
      return;
    }
    opn(2, 8);
    finish(base == "add"   ? (Fn)bin<u64, Pair<FAdd>>
           : base == "sub" ? (Fn)bin<u64, Pair<FSub>>
           : base == "mul" ? (Fn)bin<u64, Pair<FMul>>
                           : nullptr);
    return;
  }
  if (base == "add") {
    opn(2, sz);
    finish(fl ? FLOAT_OF(bin, FAdd) : INT_OF(bin, Add));
    return;
  }
  if (base == "sub") {
    opn(2, sz);
    finish(fl ? FLOAT_OF(bin, FSub) : INT_OF(bin, Sub));
    return;
  }
  if (base == "mul") {
    if (fl) {
      opn(2, sz);
      finish(FLOAT_OF(bin, FMul));
      return;
    }
    opn(2, sz);
    if (has("wide")) {
      finish(t == T_S32   ? (Fn)mulWide<s32>
             : t == T_U32 ? (Fn)mulWide<u32>
             : t == T_S16 ? (Fn)mulWide<s16>
             : t == T_U16 ? (Fn)mulWide<u16>
                          : nullptr);
      return;
    }
    finish(has("hi") ? SIGNED_OF(bin, MulHi) : INT_OF(bin, MulLo));
    return;
  }
  if (base == "mad" || base == "fma") {
    if (fl) {
      opn(3, sz);
      finish(FLOAT_OF(tri, FFma));
      return;
    }
    if (has("wide")) {
      I.d = dst(o[0]);
      I.a = src(o[1], sz);
      I.b = src(o[2], sz);
      I.c = src(o[3], 2 * sz);
      flowAll();
      finish(t == T_S32   ? (Fn)madWide<s32>
             : t == T_U32 ? (Fn)madWide<u32>
             : t == T_S16 ? (Fn)madWide<s16>
                          : (Fn)madWide<u16>);
      return;
    }
    opn(3, sz);
    finish(has("hi") ? SIGNED_OF(tri, MadHi) : INT_OF(tri, MadLo));
    return;
  }
  if (base == "div") {
    I.cls = C_SFU;
    opn(2, sz);
    if (t == T_F32) {
      finish(has("full") || has("approx") ? (z ? (Fn)divApprox<true> : (Fn)divApprox<false>)
             : z                          ? (Fn)bin<float, Ftz<FDiv>>
                                          : (Fn)bin<float, FDiv>);
      return;
    }
    if (t == T_F64) {
      finish(bin<double, FDiv>);
      return;
    }
    finish(SIGNED_OF(bin, DivI));
    return;
  }
  if (base == "rem") {
    I.cls = C_SFU;
    opn(2, sz);
    finish(SIGNED_OF(bin, RemI));
    return;
  }
  if (base == "min" || base == "max") {
    bool mn = base == "min";
    if (o.size() > 3) {
      if (t != T_F32) fail("three-input min");
      opn(3, sz);
      finish(has("NaN") ? (mn ? FLOAT_OF(tri, FMinN) : FLOAT_OF(tri, FMaxN))
             : mn       ? FLOAT_OF(tri, FMin)
                        : FLOAT_OF(tri, FMax));
      return;
    }
    opn(2, sz);
    if (!fl) {
      finish(mn ? SIGNED_OF(bin, MinI) : SIGNED_OF(bin, MaxI));
      return;
    }
    if (has("xorsign")) fail("xorsign");
    finish(has("NaN") ? (mn ? FLOAT_OF(bin, FMinN) : FLOAT_OF(bin, FMaxN))
           : mn       ? FLOAT_OF(bin, FMin)
                      : FLOAT_OF(bin, FMax));
    return;
  }
  if (base == "neg") {
    opn(1, sz);
    finish(!fl          ? INT_OF(un, Neg)
           : t == T_F32 ? (z ? (Fn)un<float, Ftz<FNeg>> : (Fn)un<float, FNeg>)
           : t == T_F64 ? (Fn)un<double, FNeg>
           : sz == 2    ? (Fn)un<u16, HNeg>
                        : (Fn)un<u32, H2Neg>);
    return;
  }
  if (base == "abs") {
    opn(1, sz);
    finish(!fl          ? SIGNED_OF(un, AbsI)
           : t == T_F32 ? (z ? (Fn)un<float, Ftz<FAbs>> : (Fn)un<float, FAbs>)
           : t == T_F64 ? (Fn)un<double, FAbs>
           : sz == 2    ? (Fn)un<u16, HAbs>
                        : (Fn)un<u32, H2Abs>);
    return;
  }
  if (base == "copysign") {
    opn(2, sz);
    finish(t == T_F32 ? (Fn)bin<float, FCopysign> : (Fn)bin<double, FCopysign>);
    return;
  }
  I.cls = C_SFU;
  bool approx = has("approx");
  if (base == "sqrt") {
    opn(1, sz);
    finish(t == T_F64 ? (Fn)un<double, FSqrt>
           : approx   ? (z ? (Fn)sqrtApprox<true> : (Fn)sqrtApprox<false>)
           : z        ? (Fn)un<float, Ftz<FSqrt>>
                      : (Fn)un<float, FSqrt>);
    return;
  }
  if (base == "rcp") {
    opn(1, sz);
    finish(t == T_F64 ? (approx ? (Fn)rcp64 : (Fn)un<double, FRcp>)
           : approx   ? (z ? (Fn)rcpApprox<true> : (Fn)rcpApprox<false>)
           : z        ? (Fn)un<float, Ftz<FRcp>>
                      : (Fn)un<float, FRcp>);
    return;
  }
  if (base == "rsqrt") {
    opn(1, sz);
    finish(t == T_F64 ? (Fn)rsqrt64 : z ? (Fn)rsqrtApprox<true> : (Fn)rsqrtApprox<false>);
    return;
  }
  if (t == T_F32 && approx) {
    opn(1, sz);
    finish(base == "ex2"    ? (z ? (Fn)ex2Approx<true> : (Fn)ex2Approx<false>)
           : base == "lg2"  ? (z ? (Fn)lg2Approx<true> : (Fn)lg2Approx<false>)
           : base == "sin"  ? (z ? (Fn)sinApprox<true> : (Fn)sinApprox<false>)
           : base == "cos"  ? (z ? (Fn)cosApprox<true> : (Fn)cosApprox<false>)
           : base == "tanh" ? (Fn)tanhApprox<false>
                            : nullptr);
    return;
  }
  fail("unknown opcode");
}

void parseModule(Module& M, const char* text) {
  Parser P(M, text);
  P.run();
}

}  // namespace ptx
