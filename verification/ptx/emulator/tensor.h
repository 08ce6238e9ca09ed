// Matrix fragments: ldmatrix, stmatrix, mma.sync, wgmma.
#pragma once

#include "memory.h"

namespace ptx {

void ldmatrix(Warp& w, const Ins& I, u32 m) {  // v[0]: destinations; sub: transposed
  const u32* v = &w.L->M->pool[I.v[0]];
  int cnt = I.nv[0];
  u32 out[4][32];
  u32 addr[32];
  for (int k = 0; k < cnt; k++) {
    const u8* rows[8];
    for (int r = 0; r < 8; r++) {
      addr[r] = u32(addrOf(w, I, 8 * k + r));
      rows[r] = shared(w, I, addr[r], 16, 8 * k + r, S_READ);
    }
    if (w.L->cfg.counters) countShared(*w.L, addr, 0xff, 16);
    for (int l = 0; l < 32; l++) {
      if (I.sub) {
        u16 lo, hi;
        memcpy(&lo, rows[2 * (l & 3)] + 2 * (l >> 2), 2);
        memcpy(&hi, rows[2 * (l & 3) + 1] + 2 * (l >> 2), 2);
        out[k][l] = lo | u32(hi) << 16;
      } else
        memcpy(&out[k][l], rows[l >> 2] + 4 * (l & 3), 4);
    }
  }
  for (int k = 0; k < cnt; k++) memcpy(reg<u32>(w, v[k]), out[k], 128);
  (void)m;
}
void stmatrix(Warp& w, const Ins& I, u32) {
  const u32* v = &w.L->M->pool[I.v[0]];
  int cnt = I.nv[0];
  u32 addr[32];
  for (int k = 0; k < cnt; k++) {
    const u32* s = reg<u32>(w, v[k]);
    for (int r = 0; r < 8; r++) {
      u8 row[16];
      for (int c = 0; c < 8; c++) {
        u16 x = I.sub ? u16(s[c * 4 + r / 2] >> (16 * (r & 1))) : u16(s[r * 4 + c / 2] >> (16 * (c & 1)));
        memcpy(row + 2 * c, &x, 2);
      }
      addr[r] = u32(addrOf(w, I, 8 * k + r));
      memcpy(shared(w, I, addr[r], 16, 8 * k + r, S_WRITE, FULL, row), row, 16);
    }
    if (w.L->cfg.counters) countShared(*w.L, addr, 0xff, 16);
  }
}

// One output of a matrix product: c + sum of exact products. Mode 0 rounds the exact-enough sum once; mode 1
// cuts every term to 24 bits below the largest exponent and truncates the sum, as measured on tensor cores.
inline float dotAdd(const float* a, const float* b, int k, float c, u32 mode) {
  if (mode == 0) {
    double s = c;
    for (int i = 0; i < k; i++) s += double(a[i]) * double(b[i]);
    return float(s);
  }
  double t[65];
  int n = 0;
  double big = 0;
  t[n++] = c;
  for (int i = 0; i < k; i++) t[n++] = double(a[i]) * double(b[i]);
  double s = 0;
  bool finite = true;
  for (int i = 0; i < n; i++) {
    finite &= bool(std::isfinite(t[i]));
    big = std::max(big, std::fabs(t[i]));
  }
  if (!finite || big == 0) {
    for (int i = 0; i < n; i++) s += t[i];
    return float(s);
  }
  int e = std::ilogb(big) - 24;
  double unit = std::ldexp(1.0, e);
  for (int i = 0; i < n; i++) s += std::trunc(t[i] / unit) * unit;
  float f = float(s);
  if (std::isfinite(f) && std::fabs(double(f)) > std::fabs(s)) f = bits<float>(bits<u32>(f) - 1);
  return f;
}
typedef float (*Up)(u32);
inline float elem(Type t, u32 word, int half) {
  return t == T_BF16  ? bf2f(u16(word >> (16 * half)))
         : t == T_F16 ? h2f(u16(word >> (16 * half)))
                      : tf32(word);
}

// mma.sync.m16n8kK; v: D, A, B, C; t: type of A and B, sub: K; flag: f16 accumulators
void mma(Warp& w, const Ins& I, u32) {
  const vector<u32>& P = w.L->M->pool;
  int K = I.sub;
  float A[16][16], Bm[8][16];
  for (int l = 0; l < 32; l++) {
    int g = l >> 2, t = l & 3;
    if (I.t == T_TF32) {
      for (int r = 0; r < I.nv[1]; r++)
        A[g + 8 * (r & 1)][t + 4 * (r >> 1)] = tf32(reg<u32>(w, P[I.v[1] + r])[l]);
      for (int r = 0; r < I.nv[2]; r++) Bm[g][t + 4 * r] = tf32(reg<u32>(w, P[I.v[2] + r])[l]);
    } else {
      for (int r = 0; r < I.nv[1]; r++)
        for (int h = 0; h < 2; h++)
          A[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = elem(I.t, reg<u32>(w, P[I.v[1] + r])[l], h);
      for (int r = 0; r < I.nv[2]; r++)
        for (int h = 0; h < 2; h++) Bm[g][2 * t + h + 8 * r] = elem(I.t, reg<u32>(w, P[I.v[2] + r])[l], h);
    }
  }
  u32 out[4][32];
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < 4; r++) {
      int row = (l >> 2) + 8 * (r >> 1), col = 2 * (l & 3) + (r & 1);
      float c = I.flag ? h2f(u16(reg<u32>(w, P[I.v[3] + (r >> 1)])[l] >> (16 * (r & 1))))
                       : bits<float>(reg<u32>(w, P[I.v[3] + r])[l]);
      float x = dotAdd(A[row], Bm[col], K, c, w.L->cfg.mmaMode);
      out[r][l] = I.flag ? f2h(x) : bits<u32>(x);
    }
  if (I.flag)
    for (int r = 0; r < 2; r++) {
      u32* d = reg<u32>(w, P[I.v[0] + r]);
      for (int l = 0; l < 32; l++) d[l] = out[2 * r][l] | out[2 * r + 1][l] << 16;
    }
  else
    for (int r = 0; r < 4; r++) memcpy(reg<u32>(w, P[I.v[0] + r]), out[r], 128);
}
// mma.m8n8k4.f64 and m16n8kK.f64: A rows g (+8), columns t (+4..); B rows t, columns g; C as above in pairs
void mmaF64(Warp& w, const Ins& I, u32) {
  const vector<u32>& P = w.L->M->pool;
  int K = I.sub, M = I.flag;
  double A[16][16], Bm[8][16];
  for (int l = 0; l < 32; l++) {
    int g = l >> 2, t = l & 3;
    int perRow = M == 16 ? 2 : 1;
    for (int r = 0; r < I.nv[1]; r++)
      A[g + 8 * (perRow == 2 ? r & 1 : 0)][t + 4 * (r / perRow)] = reg<double>(w, P[I.v[1] + r])[l];
    for (int r = 0; r < I.nv[2]; r++) Bm[g][t + 4 * r] = reg<double>(w, P[I.v[2] + r])[l];
  }
  double out[4][32];
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < I.nv[0]; r++) {
      int row = (l >> 2) + 8 * (r >> 1), col = 2 * (l & 3) + (r & 1);
      double s = reg<double>(w, P[I.v[3] + r])[l];
      for (int k = 0; k < K; k++) s = std::fma(A[row][k], Bm[col][k], s);
      out[r][l] = s;
    }
  for (int r = 0; r < I.nv[0]; r++) memcpy(reg<double>(w, P[I.v[0] + r]), out[r], 256);
}

// ---------------------------------------------------------------------------------------------------- wgmma
// Shared address of 16-bit or 32-bit element (mn, k) of an operand by its matrix descriptor.
inline u32 descAddr(u64 desc, int mn, int k, int esz, bool mnMajor, bool& bad) {
  u32 start = u32(desc & 0x3fff) << 4, lbo = u32(desc >> 16 & 0x3fff) << 4,
      sbo = u32(desc >> 32 & 0x3fff) << 4, mode = u32(desc >> 62);
  u32 width = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16, a;
  bad = (desc >> 49 & 7) != 0;
  if (!mnMajor) {
    u32 kb = k * esz;
    if (mode == 0)
      a = start + (kb / 16) * lbo + (mn / 8) * sbo + (mn % 8) * 16 + kb % 16;
    else {
      bad |= false;
      a = start + (mn / 8) * sbo + (mn % 8) * width + kb;
    }
  } else {
    u32 per = width / esz, mb = (mn % per) * esz;
    if (mode == 0)
      a = start + (mn / per) * sbo + (k / 8) * lbo + (k % 8) * 16 + mb;
    else
      a = start + (mn / per) * lbo + (k / 8) * sbo + (k % 8) * width + mb;
  }
  if (mode == 1)
    a ^= (a >> 7 & 7) << 4;
  else if (mode == 2)
    a ^= (a >> 7 & 3) << 4;
  else if (mode == 3)
    a ^= (a >> 7 & 1) << 4;
  return a;
}
// v: D, A registers (or none, then a: descriptor of A); b: descriptor of B; c: scale-d predicate (or imm);
// sub: K, t: type, imm: N | imm-scale-a<0 <<16 | imm-scale-b<0 << 17 | tnspA << 18 | tnspB << 19
void touchB(Warp& w, const WgOp& x, int kind) {
  const Ins& I = *x.I;
  int N = I.imm & 0xffff, K = I.sub, esz = I.t == T_TF32 ? 4 : 2;
  bool bad = false;
  u32 seen = NONE;
  for (int n = 0; n < N; n++)
    for (int k = 0; k < K; k++) {
      u32 a = descAddr(x.descB, n, k, esz, I.imm >> 19 & 1, bad) & ~15u;
      if (a != seen) shared(w, I, a, 16, 0, kind);
      seen = a;
    }
  if (!I.nv[1]) {
    int r0 = (w.idx & 3) * 16;
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < K; k++) {
        u32 a = descAddr(x.descA, r0 + r, k, esz, I.imm >> 18 & 1, bad) & ~15u;
        if (a != seen) shared(w, I, a, 16, 0, kind);
        seen = a;
      }
  }
  if (bad) fatal(w, I, "matrix descriptor with a base offset is not emulated");
}
void wgmmaIssue(Warp& w, const Ins& I, u32 m) {
  const vector<u32>& P = w.L->M->pool;
  WgOp x;
  x.I = &I;
  x.mask = m;
  x.pc = &I - w.L->M->code.data();
  x.descB = reg<u64>(w, I.b)[0];
  x.descA = I.nv[1] ? 0 : reg<u64>(w, I.a)[0];
  u32 p = I.c == NONE ? (I.flag ? FULL : 0) : reg<u32>(w, I.c)[0];
  if (I.negC) p = ~p;
  x.scaleD = p & 1;
  if (I.nv[1]) {
    x.A.resize(I.nv[1] * 32);
    for (int r = 0; r < I.nv[1]; r++) memcpy(&x.A[r * 32], reg<u32>(w, P[I.v[1] + r]), 128);
  }
  u32 key = P[I.v[0]];
  if (!w.wgAcc.count(key)) {
    auto& acc = w.wgAcc[key];
    acc.resize(I.nv[0] * 32);
    for (int r = 0; r < I.nv[0]; r++) {
      u32* d = reg<u32>(w, P[I.v[0] + r]);
      memcpy(&acc[r * 32], d, 128);
      if (w.L->cfg.poison)
        for (int l = 0; l < 32; l++) d[l] = 0x7fbadbadu;
    }
  }
  touchB(w, x, S_WG_ISSUE);
  w.wgOpen.push_back(std::move(x));
}
void wgmmaDo(Warp& w, WgOp& x) {
  const Ins& I = *x.I;
  const vector<u32>& P = w.L->M->pool;
  int N = I.imm & 0xffff, K = I.sub, esz = I.t == T_TF32 ? 4 : 2;
  bool bad;
  bool negA = I.imm >> 16 & 1, negB = I.imm >> 17 & 1, tA = I.imm >> 18 & 1, tB = I.imm >> 19 & 1;
  vector<float> A(16 * K), Bm(N * K);
  auto load = [&](u32 a) {
    const u8* p = w.cta->smem.data() + (a - SHARED_BASE);
    if (esz == 4) {
      u32 u;
      memcpy(&u, p, 4);
      return tf32(u);
    }
    u16 h;
    memcpy(&h, p, 2);
    return I.t == T_BF16 ? bf2f(h) : h2f(h);
  };
  for (int n = 0; n < N; n++)
    for (int k = 0; k < K; k++) {
      float f = load(descAddr(x.descB, n, k, esz, tB, bad));
      Bm[n * K + k] = negB ? -f : f;
    }
  if (I.nv[1]) {
    for (int l = 0; l < 32; l++)
      for (int r = 0; r < I.nv[1]; r++) {
        u32 word = x.A[r * 32 + l];
        int g = l >> 2, t = l & 3;
        if (I.t == T_TF32)
          A[(g + 8 * (r & 1)) * K + t + 4 * (r >> 1)] = tf32(word);
        else
          for (int h = 0; h < 2; h++)
            A[(g + 8 * (r & 1)) * K + 2 * t + h + 8 * (r >> 1)] = elem(I.t, word, h);
      }
  } else {
    int r0 = (w.idx & 3) * 16;
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < K; k++) A[r * K + k] = load(descAddr(x.descA, r0 + r, k, esz, tA, bad));
  }
  if (negA)
    for (auto& f : A) f = -f;
  auto& acc = w.wgAcc[P[I.v[0]]];
  for (int r = 0; r < I.nv[0]; r++)
    for (int l = 0; l < 32; l++) {
      int row = (l >> 2) + 8 * ((r >> 1) & 1), col = (r >> 2) * 8 + 2 * (l & 3) + (r & 1);
      float c = x.scaleD ? bits<float>(acc[r * 32 + l]) : 0.0f;
      acc[r * 32 + l] = bits<u32>(dotAdd(&A[row * K], &Bm[col * K], K, c, w.L->cfg.mmaMode));
    }
  touchB(w, x, S_WG_DONE);
}
void wgmmaCommit(Warp& w, const Ins&, u32) {
  w.wgGroups.push_back(std::move(w.wgOpen));
  w.wgOpen.clear();
}
void wgmmaWait(Warp& w, const Ins& I, u32) {
  w.L->wgWaits++;
  const vector<u32>& P = w.L->M->pool;
  std::map<u32, const Ins*> done;
  while (w.wgGroups.size() > size_t(I.imm)) {
    for (auto& x : w.wgGroups.front()) {
      wgmmaDo(w, x);
      done[P[x.I->v[0]]] = x.I;
    }
    w.wgGroups.erase(w.wgGroups.begin());
  }
  for (auto& g : w.wgGroups)
    for (auto& x : g) done.erase(P[x.I->v[0]]);  // still in flight
  for (auto& x : w.wgOpen) done.erase(P[x.I->v[0]]);
  for (auto& kv : done) {
    auto it = w.wgAcc.find(kv.first);
    const Ins& J = *kv.second;
    for (int r = 0; r < J.nv[0]; r++) {
      u32* d = reg<u32>(w, P[J.v[0] + r]);
      if (w.L->cfg.poison)
        for (int l = 0; l < 32; l++)
          if (d[l] != 0x7fbadbadu) {
            report(w, I, "accumulator touched while its wgmma was in flight", NONE, "");
            break;
          }
      memcpy(d, &it->second[r * 32], 128);
    }
    w.wgAcc.erase(it);
  }
}

}  // namespace ptx
