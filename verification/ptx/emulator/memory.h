// Loads, stores, atomics, asynchronous copies, and exchanges between lanes.
#pragma once

#include "alu.h"
#include "checks.h"

namespace ptx {

inline u64 addrOf(Warp& w, const Ins& I, int l) {
  if (I.a == NONE) return u64(I.imm);
  u64 base = I.szA == 4 ? u64(reg<u32>(w, I.a)[l]) : reg<u64>(w, I.a)[l];
  u64 x = base + u64(I.imm);
  return I.space == S_SHARED ? u32(x) : x;
}
void countGlobal(Warp& w, const Ins& I, u32 m, u32 n, bool write) {
  Launch& L = *w.L;
  u64 sec[128];
  int k = 0;
  for (u32 mm = m; mm; mm &= mm - 1) {
    u64 a = addrOf(w, I, __builtin_ctz(mm));
    for (u64 s = a >> 5; s <= (a + n - 1) >> 5 && k < 128; s++) sec[k++] = s;
  }
  std::sort(sec, sec + k);
  k = std::unique(sec, sec + k) - sec;
  (write ? L.gSecW : L.gSecR) += k;
  (write ? L.gBytesW : L.gBytesR) += u64(n) * __builtin_popcount(m);
  L.gReq++;
}
// Wavefronts: lanes in groups of 128 bytes of data (32, 16 or 8 lanes); in each, distinct words of a bank one
// by one.
void countShared(Launch& L, const u32* addr, u32 m, u32 n) {
  int group = n <= 4 ? 32 : n == 8 ? 16 : 8;
  for (int g = 0; g < 32; g += group) {
    u32 words[64];
    int k = 0;
    for (int l = g; l < g + group; l++)
      if (m >> l & 1)
        for (u32 b = 0; b < std::max(n, 4u); b += 4) words[k++] = (addr[l] + b) >> 2;
    if (!k) continue;
    std::sort(words, words + k);
    k = std::unique(words, words + k) - words;
    u32 bank[32] = {0}, most = 0;
    for (int j = 0; j < k; j++) most = std::max(most, ++bank[words[j] & 31]);
    L.sWave += most;
    L.sConf += most - (k + 31) / 32;
    L.sReq++;
  }
}
void countSharedIns(Warp& w, const Ins& I, u32 m, u32 n) {
  u32 addr[32];
  for (int l = 0; l < 32; l++) addr[l] = (m >> l & 1) ? u32(addrOf(w, I, l)) : 0;
  countShared(*w.L, addr, m, n);
}
inline bool isShared(const Ins& I, u64& a) {
  if (I.space == S_SHARED) return true;
  if (I.space == S_GENERIC && (a >> 48) == 1) {
    a &= ~GENERIC_SHARED;
    return true;
  }
  return false;
}
inline bool isLocal(const Ins& I, u64& a) {
  if (I.space == S_LOCAL) return true;
  if (I.space == S_GENERIC && (a >> 49) == 1) {
    a &= ~GENERIC_LOCAL;
    return true;
  }
  return false;
}
u8* local(Warp& w, const Ins& I, u64 addr, u32 n, int l) {
  u32 size = w.L->M->localBytes;
  if (addr < 16 || addr + n > 16 + size || addr % n)
    fatal(w, I, "local access out of bounds or misaligned, lane " + std::to_string(l));
  return w.local.data() + u64(size) * l + (addr - 16);
}
inline bool strong(const Ins& I) {
  return I.sem != M_WEAK;
}
void noteSpin(Warp& w, u32 pc, u64 value) {  // an acquire load in a loop that sees nothing new gives way
  auto it = w.lastSpin.find(pc);
  if (it != w.lastSpin.end() && it->second == value) {
    w.cta->sleepUntil = w.L->tick + 1 + w.L->rnd() % 3000;
    w.L->spins++;
  } else
    w.lastSpin[pc] = value;
}
void ld(Warp& w, const Ins& I, u32 m) {
  const u32* v = &w.L->M->pool[I.v[0]];
  u32 cnt = I.nv[0], n = I.esz * cnt;
  if (w.L->cfg.counters) {
    if (I.space == S_GLOBAL)
      countGlobal(w, I, m, n, false);
    else if (I.space == S_SHARED)
      countSharedIns(w, I, m, n);
  }
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    u64 addr = addrOf(w, I, l);
    const u8* p;
    if (I.space == S_CONST)
      p = reinterpret_cast<u8*>(addr);
    else if (isLocal(I, addr))
      p = local(w, I, addr, n, l);
    else if (isShared(I, addr))
      p = shared(w, I, addr, n, l, S_READ, I.used);
    else
      p = global(w, I, addr, n, l, strong(I) ? G_ATOMIC_READ : G_READ, I.used);
    for (u32 k = 0; k < cnt; k++) {
      u64 x = 0;
      memcpy(&x, p + k * I.esz, I.esz);
      writeReg(w, v[k], I.vsz, l, I.flag ? extend(x, I.t) : x);
      if (strong(I) && I.space != S_SHARED) {
        syncAccess(w, addr, I.sem, true, false);
        noteSpin(w, &I - w.L->M->code.data(), x);
      }
    }
  }
}
void ldParam(Warp& w, const Ins& I, u32 m) {
  const u32* v = &w.L->M->pool[I.v[0]];
  for (u32 k = 0; k < I.nv[0]; k++) {
    u64 x = 0;
    memcpy(&x, w.L->params.data() + I.imm + k * I.esz, I.esz);
    if (I.flag) x = extend(x, I.t);
    for (u32 mm = m; mm; mm &= mm - 1) writeReg(w, v[k], I.vsz, __builtin_ctz(mm), x);
  }
}
void st(Warp& w, const Ins& I, u32 m) {
  const u32* v = &w.L->M->pool[I.v[0]];
  u32 cnt = I.nv[0], n = I.esz * cnt;
  if (w.L->cfg.counters) {
    if (I.space == S_GLOBAL)
      countGlobal(w, I, m, n, true);
    else if (I.space == S_SHARED)
      countSharedIns(w, I, m, n);
  }
  bool down = w.L->cfg.laneOrder == 1 || (w.L->cfg.laneOrder == 2 && (w.L->rnd() >> 20 & 1));
  for (u32 mm = m; mm;) {
    int l = down ? 31 - __builtin_clz(mm) : __builtin_ctz(mm);
    mm &= ~(1u << l);
    u64 addr = addrOf(w, I, l);
    u8 val[32];
    for (u32 k = 0; k < cnt; k++) {
      u64 x = readReg(w, v[k], I.vsz, l);
      memcpy(val + k * I.esz, &x, I.esz);
    }
    if (isLocal(I, addr))
      memcpy(local(w, I, addr, n, l), val, n);
    else if (isShared(I, addr)) {
      u8* p = shared(w, I, addr, n, l, S_WRITE, FULL, val);
      if (w.L->cfg.racecheck) {
        u32 g = w.L->M->sGran;
        u64 o = addr - SHARED_BASE;
        for (u32 b = 0; b < n; b += g)
          sameStore(w, I, p + b, val + b, g, w.cta->sh[(o + b) / g].wSeq, "conflicting shared store");
      }
      memcpy(p, val, n);
    } else {
      u8* p = global(w, I, addr, n, l, strong(I) ? G_ATOMIC : G_WRITE, FULL, strong(I) ? nullptr : val);
      if (w.L->cfg.racecheck && !strong(I)) {
        Alloc& A = w.L->allocs[w.L->lastAlloc];
        u32 g = w.L->M->gGran;
        u64 o = addr - A.base;
        for (u32 b = 0; b < n; b += g) {
          u64 gi = (o + b) / g;
          sameStore(w, I, p + b, val + b, g, (*A.pages[gi >> 10])[gi & 1023].wSeq,
                    "conflicting global store");
        }
      }
      if (strong(I)) syncAccess(w, addr, I.sem, false, true);
      memcpy(p, val, n);
    }
  }
}
template <class T>
T atomInt(AtomOp op, T old, T b, T c) {
  typedef typename std::make_unsigned<T>::type U;
  switch (op) {
    case A_ADD:
      return T(U(old) + U(b));
    case A_MIN:
      return std::min(old, b);
    case A_MAX:
      return std::max(old, b);
    case A_AND:
      return old & b;
    case A_OR:
      return old | b;
    case A_XOR:
      return old ^ b;
    case A_EXCH:
      return b;
    case A_CAS:
      return old == b ? c : old;
    case A_INC:
      return U(old) >= U(b) ? T(0) : T(old + 1);
    case A_DEC:
      return old == 0 || U(old) > U(b) ? b : T(old - 1);
  }
  return old;
}
u64 atomApply(Warp& w, const Ins& I, u64 old, u64 b, u64 c) {
  switch (I.t) {
    case T_S32:
      return u32(atomInt<s32>(I.op, s32(old), s32(b), s32(c)));
    case T_B32:
    case T_U32:
      return atomInt<u32>(I.op, u32(old), u32(b), u32(c));
    case T_S64:
      return u64(atomInt<s64>(I.op, s64(old), s64(b), s64(c)));
    case T_B64:
    case T_U64:
      return atomInt<u64>(I.op, old, b, c);
    case T_B16:
    case T_U16:
      return atomInt<u16>(I.op, u16(old), u16(b), u16(c));
    case T_F32:
      if (I.op == A_ADD) return bits<u32>(bits<float>(u32(old)) + bits<float>(u32(b)));
      if (I.op == A_EXCH) return b;
      break;
    case T_F64:
      if (I.op == A_ADD) return bits<u64>(bits<double>(old) + bits<double>(b));
      if (I.op == A_EXCH) return b;
      break;
    case T_F16:
      if (I.op == A_ADD) return Half<H, FAdd>::f(u16(old), u16(b));
      break;
    case T_BF16:
      if (I.op == A_ADD) return Half<B, FAdd>::f(u16(old), u16(b));
      break;
    case T_F16X2:
      if (I.op == A_ADD) return Half2<H, FAdd>::f(u32(old), u32(b));
      break;
    case T_BF16X2:
      if (I.op == A_ADD) return Half2<B, FAdd>::f(u32(old), u32(b));
      break;
    default:
      break;
  }
  fatal(w, I, "this atomic is not emulated");
}
void atom(Warp& w, const Ins& I, u32 m) {
  Launch& L = *w.L;
  u32 n = I.esz;
  u32 cnt = I.nv[0] ? I.nv[0] : 1;  // red.global.v2/v4
  if (L.cfg.counters) {
    if (I.space == S_SHARED)
      countSharedIns(w, I, m, n);
    else
      countGlobal(w, I, m, n * cnt, true);
  }
  int order[32], k = 0;
  for (u32 mm = m; mm; mm &= mm - 1) order[k++] = __builtin_ctz(mm);
  if (L.cfg.seed)
    for (int j = k - 1; j > 0; j--) std::swap(order[j], order[L.rnd() % (j + 1)]);  // lanes in no order
  for (int j = 0; j < k; j++) {
    int l = order[j];
    u64 addr = addrOf(w, I, l);
    for (u32 e = 0; e < cnt; e++) {
      u64 at = addr + e * n;
      bool sh = isShared(I, at);
      u8* p = sh ? shared(w, I, at, n, l, S_ATOMIC) : global(w, I, at, n, l, G_ATOMIC);
      u64 old = 0;
      memcpy(&old, p, n);
      u32 src = I.nv[0] ? L.M->pool[I.v[0] + e] : I.b;
      u64 b = readReg(w, src, I.vsz, l), c = I.c == NONE ? 0 : readReg(w, I.c, I.vsz, l);
      u64 now = atomApply(w, I, old, b, c);
      memcpy(p, &now, n);
      if (!sh) syncAccess(w, at, I.sem, true, true);
      if (I.d != NONE) writeReg(w, I.d, I.szD, l, old);
      if (!sh && I.d != NONE && now == old) noteSpin(w, &I - L.M->code.data(), old);
    }
  }
}
void fence(Warp& w, const Ins&, u32) {
  fenceAccess(w);
}

// ----------------------------------------------------------------------------------------------------
// asynchronous copies
void cpAsync(Warp& w, const Ins& I, u32 m) {  // v[0]: destination address, a: source address; imm offsets
  Launch& L = *w.L;
  u32 n = I.esz, pc = &I - L.M->code.data();
  if (L.cfg.counters) {
    u32 addr[32];
    for (int l = 0; l < 32; l++) addr[l] = reg<u32>(w, I.d)[l] + I.v[1];
    countShared(L, addr, m, n);
    u32 act = 0;
    for (u32 mm = m; mm; mm &= mm - 1) {
      int l = __builtin_ctz(mm);
      if (I.c == NONE || readReg(w, I.c, 4, l)) act |= 1u << l;
    }
    if (act) countGlobal(w, I, act, n, false);
  }
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    CpAsync x;
    x.dst = u32((I.szD == 4 ? reg<u32>(w, I.d)[l] : u32(reg<u64>(w, I.d)[l])) + I.v[1]);
    x.n = n;
    x.pc = pc;
    memset(x.data, 0, 16);
    u32 size = I.c == NONE ? n : u32(readReg(w, I.c, 4, l));
    if (I.c != NONE && I.flag) size = size ? 0 : n;  // an ignore-src predicate
    if (size > n) fatal(w, I, "cp.async of more bytes than its size");
    u64 src = addrOf(w, I, l);
    if (src % n) fatal(w, I, "misaligned cp.async");
    if (size == n)
      memcpy(x.data, global(w, I, src, n, l, G_READ), n);
    else
      for (u32 k = 0; k < size; k += 4)
        memcpy(x.data + k, global(w, I, src + k, 4, l, G_READ), std::min(4u, size - k));
    shared(w, I, x.dst, n, l, S_ASYNC_ISSUE);
    w.cpOpen.items.push_back(x);
  }
}
void cpLand(Warp& w, CpGroup& g, const Ins& at) {
  for (auto& x : g.items) {
    u8* p = shared(w, w.L->M->code[x.pc], x.dst, x.n, 0, S_ASYNC_DONE);
    memcpy(p, x.data, x.n);
  }
  (void)at;
}
void cpCommit(Warp& w, const Ins&, u32) {
  w.cpGroups.push_back(std::move(w.cpOpen));
  w.cpOpen = CpGroup();
}
void cpWait(Warp& w, const Ins& I, u32) {
  size_t keep = size_t(I.imm);
  while (w.cpGroups.size() > keep) {
    cpLand(w, w.cpGroups.front(), I);
    w.cpGroups.erase(w.cpGroups.begin());
  }
  if (I.flag) {
    cpLand(w, w.cpOpen, I);
    w.cpOpen = CpGroup();
  }  // wait_all
}

// ----------------------------------------------------------------------------------------------------
// between lanes
void shfl(Warp& w, const Ins& I, u32 m) {  // sub: 0 up, 1 down, 2 bfly, 3 idx
  u32 src[32];
  memcpy(src, reg<u32>(w, I.a), 128);
  const u32 *b = reg<u32>(w, I.b), *c = reg<u32>(w, I.c);
  u32* d = I.d == NONE ? nullptr : reg<u32>(w, I.d);
  u32 pr = 0, out[32];
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    int bv = b[l] & 31, cv = c[l] & 31, seg = c[l] >> 8 & 31;
    int maxL = (l & seg) | (cv & ~seg), minL = l & seg, j = 0;
    bool ok = false;
    switch (I.sub) {
      case 0:
        j = l - bv;
        ok = j >= maxL;
        break;
      case 1:
        j = l + bv;
        ok = j <= maxL;
        break;
      case 2:
        j = l ^ bv;
        ok = j <= maxL;
        break;
      case 3:
        j = minL | (bv & ~seg);
        ok = j <= maxL;
        break;
    }
    if (!ok) j = l;
    if (j < 0 || j > 31 || !(m >> j & 1)) fatal(w, I, "shfl from a lane that takes no part");
    out[l] = src[j];
    pr |= u32(ok) << l;
  }
  if (d) LANES(m, d[l] = out[l]);
  putPred(w, I.d2, m, pr);
}
void redux(Warp& w, const Ins& I, u32 m) {
  const u32* a = reg<u32>(w, I.a);
  u32* d = reg<u32>(w, I.d);
  u32 acc = a[__builtin_ctz(m)];
  bool first = true;
  for (u32 mm = m; mm; mm &= mm - 1) {
    u32 x = a[__builtin_ctz(mm)];
    if (first) {
      first = false;
      continue;
    }
    switch (I.op) {
      case A_ADD:
        acc += x;
        break;
      case A_AND:
        acc &= x;
        break;
      case A_OR:
        acc |= x;
        break;
      case A_XOR:
        acc ^= x;
        break;
      case A_MIN:
        if (I.t == T_F32)
          acc = bits<u32>(I.flag ? FMinN::f(bits<float>(acc), bits<float>(x))
                                 : FMin::f(bits<float>(acc), bits<float>(x)));
        else
          acc = I.t == T_S32 ? u32(std::min(s32(acc), s32(x))) : std::min(acc, x);
        break;
      case A_MAX:
        if (I.t == T_F32)
          acc = bits<u32>(I.flag ? FMaxN::f(bits<float>(acc), bits<float>(x))
                                 : FMax::f(bits<float>(acc), bits<float>(x)));
        else
          acc = I.t == T_S32 ? u32(std::max(s32(acc), s32(x))) : std::max(acc, x);
        break;
      default:
        fatal(w, I, "redux");
    }
  }
  LANES(m, d[l] = acc);
}
void vote(Warp& w, const Ins& I, u32 m) {  // sub: 0 all, 1 any, 2 uni, 3 ballot
  u32 p = reg<u32>(w, I.a)[0];
  if (I.negC) p = ~p;
  p &= m;
  if (I.sub == 3) {
    u32* d = reg<u32>(w, I.d);
    LANES(m, d[l] = p);
    return;
  }
  bool r = I.sub == 0 ? p == m : I.sub == 1 ? p != 0 : p == 0 || p == m;
  putPred(w, I.d, m, r ? FULL : 0);
}
void matchAny(Warp& w, const Ins& I, u32 m) {
  u32 out[32];
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    u32 r = 0;
    for (int j = 0; j < 32; j++)
      if ((m >> j & 1) && readReg(w, I.a, I.szA, j) == readReg(w, I.a, I.szA, l)) r |= 1u << j;
    out[l] = I.sub ? (r == m ? m : 0) : r;
  }
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    writeReg(w, I.d, 4, l, out[l]);
    if (I.d2 != NONE) writeReg(w, I.d2, 1, l, out[l] != 0);
  }
}
void activeMask(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  LANES(m, d[l] = m);
}
void elect(Warp& w, const Ins& I, u32 m) {
  u32 lead = __builtin_ctz(m);
  if (I.d != NONE) {
    u32* d = reg<u32>(w, I.d);
    LANES(m, d[l] = lead);
  }
  putPred(w, I.d2, m, 1u << lead);
}
void warpSync(Warp&, const Ins&, u32) {}

}  // namespace ptx
