// The state of a launch: warps, CTAs, allocations, what the checkers know; reports.
#pragma once

#include "module.h"

#include <algorithm>
#include <cstdio>
#include <unordered_map>

namespace ptx {

struct Fatal {
  string what;
};

struct Config {  // mirrored by driver.py
  u32 seed, memcheck, initcheck, racecheck, spancheck, counters, resident, maxBudget;
  u32 mmaMode;      // 0: rounded once from double; 1: truncating adders as tensor cores have them
  u32 approxNoise;  // 1: approximate functions are off by a hash-chosen ulp
  u32 poison;       // 1: accumulators of wgmma are poisoned until waited for
  u32 laneOrder;    // of lanes that store to one address stays 0: the highest, 1: the lowest, 2: either, by
                    // chance
  u32 skipCtas;     // the last so many CTAs never start (to see a deadlock)
  u64 maxInstructions;
};
struct AllocIn {
  u64 base, size;
  u32 uninit;
  u32 pad;
  u64 initMap;
  u64 label;
};  // initMap: byte map of what was written
struct SpanIn {
  u64 lo, hi;
};

struct VC {
  vector<u32> own;
  std::shared_ptr<vector<u32>> ext;
};
struct Access {
  u32 w = 0, c = 0, pc = 0;
  int m = -1;
};  // w: warp + 1
struct GShadow {
  u32 wW = 0, wC = 0, wPc = 0, wSeq = 0;
  bool silent = false;
  Access r, a, ar;
};  // plain reads, atomics, strong reads
struct SShadow {
  u32 wPhase = 0, wPc = 0, wSeq = 0, rPhase = 0, rMask = 0, rPc = 0, aPhase = 0, aMask = 0;
  u16 wWarp = 0;
  u8 init = 0, pendW = 0;
  u16 pendR = 0;
  u16 pad = 0;
};

struct CpAsync {
  u32 dst;
  u32 n;
  u8 data[16];
  u32 pc;
};
struct CpGroup {
  vector<CpAsync> items;
};
struct WgOp {
  const Ins* I;
  u32 mask;
  u64 descA, descB;
  vector<u32> A;
  bool scaleD;
  u32 pc;
};
struct WgChain {
  vector<u32> acc;
};  // 32 lanes a register, keyed by the accumulators' registers

struct Cta;
struct Launch;
struct Warp {
  u8* R = nullptr;
  vector<u8> mem, local;  // local: localBytes a lane
  Launch* L = nullptr;
  Cta* cta = nullptr;
  u32 gid = 0, idx = 0;
  u32 pc = 0, cur = 0, stop = NONE, live = 0, stalled = 0;
  u32 tpc[32];
  u8 state = 0;  // 0 run, 1 at a barrier, 2 done
  u32 barId = 0;
  u32 slot = 0;
  VC vc;
  std::shared_ptr<vector<u32>> fenceVC;
  bool fenced = false;
  std::shared_ptr<vector<u32>> pendAcq;
  CpGroup cpOpen;
  vector<CpGroup> cpGroups;
  vector<WgOp> wgOpen;
  vector<vector<WgOp>> wgGroups;
  std::map<u32, vector<u32>> wgAcc;  // in flight
  std::unordered_map<u32, u64> lastSpin;
  u64 executed = 0;
};
struct Cta {
  u32 lin = 0, x = 0, y = 0, z = 0;
  vector<std::unique_ptr<Warp>> warps;
  vector<u8> smem;
  vector<SShadow> sh;
  u32 phase = 1, atBar = 0, alive = 0;
  u64 sleepUntil = 0;
};
struct Alloc {
  u64 base, size;
  bool uninit;
  u8* init;
  u64 label;
  vector<std::unique_ptr<vector<GShadow>>> pages;
  bool track = true;
};
struct Multi {
  vector<Access> list;
};

struct Launch {
  Module* M;
  Config cfg;
  u32 grid[3], nthreads, nwarps, shared;
  bool coop;
  vector<Alloc> allocs;
  size_t lastAlloc = 0;
  vector<vector<SpanIn>> spans;  // by pointer parameter
  vector<u8> params;
  u64 rng = 1, tick = 0;
  u32 seq = 0;
  std::unordered_map<u64, std::shared_ptr<vector<u32>>> syncs;
  vector<Multi> multis;
  vector<int> freeMulti;
  u64 counts[C_COUNT] = {0};
  u64 gBytesR = 0, gBytesW = 0, gSecR = 0, gSecW = 0, sReq = 0, sWave = 0, sConf = 0, gReq = 0;
  u64 lanes = 0, barriers = 0, divergent = 0, spins = 0, wgWaits = 0, sameValue = 0;
  u64 maxWarpInstr = 0;
  std::map<string, std::pair<u64, string>> reports;  // key -> count, first message
  vector<std::unique_ptr<Cta>> resident, pool;
  vector<Warp*> runnable;
  u32 totalWarps = 0;

  u64 rnd() {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
  }
};

string where(const Warp& w, const Ins& I) {
  char head[160];
  snprintf(head, sizeof head, "cta (%u,%u,%u) warp %u, ptx line %u", w.cta->x, w.cta->y, w.cta->z, w.idx,
           I.line);
  return string(head) + " [" + w.L->M->locs[I.loc] + "] " + I.text;
}
void report(Warp& w, const Ins& I, const char* kind, u32 otherPc, const string& detail) {
  string key =
      string(kind) + ":" + std::to_string(I.line) + ":" + std::to_string(otherPc == NONE ? 0 : otherPc);
  auto& r = w.L->reports[key];
  if (r.first++ == 0) {
    r.second = string(kind) + ": " + detail + "; " + where(w, I);
    if (otherPc != NONE && otherPc < w.L->M->code.size()) {
      const Ins& O = w.L->M->code[otherPc];
      r.second +=
          " | other access: ptx line " + std::to_string(O.line) + " [" + w.L->M->locs[O.loc] + "] " + O.text;
    }
  }
}
[[noreturn]] void fatal(Warp& w, const Ins& I, const string& what) {
  throw Fatal{what + "; " + where(w, I)};
}

template <class T>
inline T* reg(Warp& w, u32 off) {
  return reinterpret_cast<T*>(w.R + off);
}
#define LANES(m, ...)                                     \
  do {                                                    \
    if ((m) == FULL) {                                    \
      _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) { \
        __VA_ARGS__;                                      \
      }                                                   \
    } else {                                              \
      for (u32 mm_ = (m); mm_; mm_ &= mm_ - 1) {          \
        int l = __builtin_ctz(mm_);                       \
        __VA_ARGS__;                                      \
      }                                                   \
    }                                                     \
  } while (0)

inline u64 readReg(Warp& w, u32 off, int sz, int l) {
  switch (sz) {
    case 2:
      return reg<u16>(w, off)[l];
    case 4:
      return reg<u32>(w, off)[l];
    case 8:
      return reg<u64>(w, off)[l];
    case 1:
      return (reg<u32>(w, off)[0] >> l) & 1;  // predicate
  }
  return 0;
}
inline void writeReg(Warp& w, u32 off, int sz, int l, u64 x) {
  if (off == NONE) return;
  switch (sz) {
    case 2:
      reg<u16>(w, off)[l] = u16(x);
      break;
    case 4:
      reg<u32>(w, off)[l] = u32(x);
      break;
    case 8:
      reg<u64>(w, off)[l] = x;
      break;
    case 1: {
      u32& p = reg<u32>(w, off)[0];
      p = (p & ~(1u << l)) | (u32(x & 1) << l);
      break;
    }
  }
}
inline u64 extend(u64 x, Type t) {
  switch (sizeOf(t)) {
    case 1:
      return isSigned(t) ? u64(s64(s8(x))) : u64(u8(x));
    case 2:
      return isSigned(t) ? u64(s64(s16(x))) : u64(u16(x));
    case 4:
      return isSigned(t) ? u64(s64(s32(x))) : u64(u32(x));
    default:
      return x;
  }
}

}  // namespace ptx
