// Checkers: bounds, initialisation, races by vector clocks (global memory) and barrier phases (shared
// memory).
#pragma once

#include "launch.h"

namespace ptx {

// ---------------------------------------------------------------------------------------------------- vector
// clocks
inline u32 clockOf(const Warp& w) {
  return w.vc.own[w.idx];
}
inline bool ordered(const Warp& w, u32 gid, u32 clk) {
  u32 nw = w.L->nwarps;
  if (gid / nw == w.cta->lin) return w.vc.own[gid % nw] >= clk;
  return w.vc.ext && (*w.vc.ext)[gid] >= clk;
}
std::shared_ptr<vector<u32>> snapshot(const Warp& w) {
  auto v = w.vc.ext ? std::make_shared<vector<u32>>(*w.vc.ext)
                    : std::make_shared<vector<u32>>(w.L->totalWarps, 0u);
  for (u32 k = 0; k < w.L->nwarps; k++) {
    u32& x = (*v)[w.cta->lin * w.L->nwarps + k];
    x = std::max(x, w.vc.own[k]);
  }
  return v;
}
void joinInto(std::shared_ptr<vector<u32>>& a, const std::shared_ptr<vector<u32>>& b) {
  if (!b || a == b) return;
  if (!a) {
    a = std::make_shared<vector<u32>>(*b);
    return;
  }
  bool more = false;
  for (size_t k = 0; k < b->size() && !more; k++) more = (*b)[k] > (*a)[k];
  if (!more) return;
  auto v = std::make_shared<vector<u32>>(*a);
  for (size_t k = 0; k < b->size(); k++) (*v)[k] = std::max((*v)[k], (*b)[k]);
  a = v;
}
void acquireFrom(Warp& w, const std::shared_ptr<vector<u32>>& v) {
  if (!v) return;
  joinInto(w.vc.ext, v);
  for (u32 k = 0; k < w.L->nwarps; k++)
    w.vc.own[k] = std::max(w.vc.own[k], (*v)[w.cta->lin * w.L->nwarps + k]);
}
// A strong operation on a location of global memory: what synchronizes with what.
void syncAccess(Warp& w, u64 addr, Sem sem, bool reads, bool writes) {
  if (!w.L->cfg.racecheck) return;
  auto it = w.L->syncs.find(addr);
  if (reads && it != w.L->syncs.end()) {
    if (sem == M_ACQUIRE || sem == M_ACQ_REL)
      acquireFrom(w, it->second);
    else if (w.L->M->hasFence)
      joinInto(w.pendAcq, it->second);
  }
  if (writes) {
    std::shared_ptr<vector<u32>> mine;
    if (sem == M_RELEASE || sem == M_ACQ_REL) {
      mine = snapshot(w);
      w.vc.own[w.idx]++;
    } else if (w.fenced)
      mine = w.fenceVC;
    auto& at = w.L->syncs[addr];
    if (!reads)
      at = mine;  // a plain write ends what was released before; read-modify-writes carry it on
    else if (mine)
      joinInto(at, mine);
  }
}
void fenceAccess(Warp& w) {
  if (!w.L->cfg.racecheck) return;
  acquireFrom(w, w.pendAcq);
  w.fenceVC = snapshot(w);
  w.fenced = true;
  w.vc.own[w.idx]++;
}
void barrierJoin(Cta& c) {  // all warps of the CTA
  u32 n = c.warps.size();
  vector<u32> own(n, 0);
  std::shared_ptr<vector<u32>> ext;
  for (auto& w : c.warps) {
    for (u32 k = 0; k < n; k++) own[k] = std::max(own[k], w->vc.own[k]);
    joinInto(ext, w->vc.ext);
  }
  for (auto& w : c.warps) {
    w->vc.own = own;
    w->vc.own[w->idx]++;
    w->vc.ext = ext;
  }
}

// ---------------------------------------------------------------------------------------------------- global
// memory
inline Alloc* findAlloc(Launch& L, u64 addr, u32 n) {
  if (L.lastAlloc < L.allocs.size()) {
    Alloc& A = L.allocs[L.lastAlloc];
    if (addr >= A.base && addr + n <= A.base + A.size) return &A;
  }
  size_t lo = 0, hi = L.allocs.size();
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (L.allocs[mid].base <= addr)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (!lo) return nullptr;
  Alloc& A = L.allocs[lo - 1];
  if (addr + n > A.base + A.size) return nullptr;
  L.lastAlloc = lo - 1;
  return &A;
}
string describe(Launch& L, u64 addr, u32 n) {
  char buf[200];
  const Alloc* best = nullptr;
  u64 dist = ~0ull;
  for (auto& A : L.allocs) {
    u64 d = addr < A.base ? A.base - addr : addr >= A.base + A.size ? addr - (A.base + A.size) + 1 : 0;
    if (d < dist) {
      dist = d;
      best = &A;
    }
  }
  if (best)
    snprintf(buf, sizeof buf, "%u bytes at offset %lld of an allocation of %llu bytes (argument %lld)", n,
             (long long)(addr - best->base), (unsigned long long)best->size, (long long)best->label);
  else
    snprintf(buf, sizeof buf, "%u bytes at 0x%llx, no allocation", n, (unsigned long long)addr);
  return buf;
}
void clearAccess(Launch& L, Access& a) {
  if (a.m >= 0) {
    L.multis[a.m].list.clear();
    L.freeMulti.push_back(a.m);
  }
  a = Access();
}
void noteAccess(Warp& w, Access& a, u32 pc) {
  Launch& L = *w.L;
  u32 me = w.gid + 1, clk = clockOf(w);
  if (a.m < 0) {
    if (a.w == 0 || a.w == me || ordered(w, a.w - 1, a.c)) {
      a.w = me;
      a.c = clk;
      a.pc = pc;
      return;
    }
    int k;
    if (L.freeMulti.empty()) {
      k = L.multis.size();
      L.multis.emplace_back();
    } else {
      k = L.freeMulti.back();
      L.freeMulti.pop_back();
    }
    Access old = a;
    old.m = -1;
    L.multis[k].list.push_back(old);
    a.m = k;
  }
  a.w = me;
  a.c = clk;
  a.pc = pc;
  for (auto& x : L.multis[a.m].list)
    if (x.w == me) {
      x.c = clk;
      x.pc = pc;
      return;
    }
  Access mine;
  mine.w = me;
  mine.c = clk;
  mine.pc = pc;
  L.multis[a.m].list.push_back(mine);
}
// The PC of an access in `a` that is not ordered before this warp's present, or NONE.
u32 unordered(Warp& w, const Access& a) {
  if (a.m < 0) return a.w && a.w != w.gid + 1 && !ordered(w, a.w - 1, a.c) ? a.pc : NONE;
  for (auto& x : w.L->multis[a.m].list)
    if (x.w != w.gid + 1 && !ordered(w, x.w - 1, x.c)) return x.pc;
  return NONE;
}
enum Access_ { G_READ, G_WRITE, G_ATOMIC_READ, G_ATOMIC };
void raceGlobal(Warp& w, const Ins& I, Alloc& A, u64 addr, u32 n, int kind, const u8* value) {
  Launch& L = *w.L;
  if (kind == G_READ && !A.track) return;
  u32 gran = L.M->gGran, pc = &I - L.M->code.data();
  u64 first = (addr - A.base) / gran, last = (addr + n - 1 - A.base) / gran;
  for (u64 g = first; g <= last; g++) {
    u64 page = g >> 10;
    if (A.pages.size() <= page) A.pages.resize(page + 1);
    if (!A.pages[page]) A.pages[page].reset(new vector<GShadow>(1024));
    GShadow& s = (*A.pages[page])[g & 1023];
    // A store of what is there already changes nothing for whoever reads or writes the same: a race of its
    // own kind.
    bool silent = value && !memcmp(reinterpret_cast<u8*>(A.base + g * gran),
                                   value + s64(A.base + g * gran - addr), gran);
    const char* race = silent ? "same-value global race" : "global race";
    bool mine = s.wW == 0 || s.wW == w.gid + 1 || ordered(w, s.wW - 1, s.wC);
    if (!mine)
      report(w, I, (kind == G_READ && s.silent) ? "same-value global race" : race, s.wPc,
             string(kind == G_READ    ? "read after"
                    : kind == G_WRITE ? "write after"
                                      : "atomic after") +
                 " a write of warp " + std::to_string(s.wW - 1) + " not ordered with it, " +
                 describe(L, addr, n));
    if (kind != G_ATOMIC && kind != G_ATOMIC_READ) {
      u32 other = unordered(w, s.a);
      if (other != NONE)
        report(w, I, race, other,
               string(kind == G_READ ? "read" : "write") + " not ordered with an atomic, " +
                   describe(L, addr, n));
    }
    if (kind == G_WRITE) {
      u32 other = unordered(w, s.ar);
      if (other != NONE)
        report(w, I, race, other, "write not ordered with a strong read, " + describe(L, addr, n));
    }
    if (kind == G_WRITE || kind == G_ATOMIC) {
      u32 other = unordered(w, s.r);
      if (other != NONE)
        report(w, I, race, other,
               string(kind == G_WRITE ? "write" : "atomic") + " not ordered with a read, " +
                   describe(L, addr, n));
    }
    if (kind == G_READ)
      noteAccess(w, s.r, pc);
    else if (kind == G_ATOMIC)
      noteAccess(w, s.a, pc);
    else if (kind == G_ATOMIC_READ)
      noteAccess(w, s.ar, pc);
    else {
      clearAccess(L, s.r);
      clearAccess(L, s.a);
      clearAccess(L, s.ar);
      s.wW = w.gid + 1;
      s.wC = clockOf(w);
      s.wPc = pc;
      s.silent = silent;
    }
  }
}
// Bounds, alignment, initialisation and races of one lane's access; returns the host address.
u8* global(Warp& w, const Ins& I, u64 addr, u32 n, int lane, int kind, u32 used = FULL,
           const u8* value = nullptr) {
  Launch& L = *w.L;
  if (addr % n && n <= 16)
    fatal(w, I, "misaligned access of lane " + std::to_string(lane) + ": " + describe(L, addr, n));
  Alloc* A = findAlloc(L, addr, n);
  if (!A) fatal(w, I, "out of bounds access of lane " + std::to_string(lane) + ": " + describe(L, addr, n));
  if (L.cfg.spancheck && I.taint) {
    bool ok = false, any = false;
    for (u32 k = 0; k < L.spans.size() && !ok; k++)
      if (I.taint >> k & 1)
        for (auto& s : L.spans[k]) {
          any = true;
          if (addr >= s.lo && addr + n <= s.hi) {
            ok = true;
            break;
          }
        }
    if (any && !ok)
      report(w, I, "outside the argument", NONE,
             "lane " + std::to_string(lane) + ", " + describe(L, addr, n));
  }
  if (A->uninit && A->init && L.cfg.initcheck) {
    u64 o = addr - A->base;
    if (kind != G_WRITE)
      for (u32 k = 0; k < n; k++)
        if (!A->init[o + k] && (used >> (k & 31) & 1)) {
          report(w, I, "uninitialised global read", NONE,
                 "lane " + std::to_string(lane) + ", " + describe(L, addr, n));
          break;
        }
    if (kind == G_WRITE || kind == G_ATOMIC)
      for (u32 k = 0; k < n; k++) A->init[o + k] = 1;
  }
  if (L.cfg.racecheck) raceGlobal(w, I, *A, addr, n, kind, value);
  return reinterpret_cast<u8*>(addr);
}

// ---------------------------------------------------------------------------------------------------- shared
// memory
enum { S_READ, S_WRITE, S_ATOMIC, S_ASYNC_ISSUE, S_ASYNC_DONE, S_WG_ISSUE, S_WG_DONE };
// `value`: what a store is about to write. Two warps that write the same value to the same place are no race:
// layouts with copies of a tensor in several warps are stored so.
u8* shared(Warp& w, const Ins& I, u64 addr, u32 n, int lane, int kind, u32 used = FULL,
           const u8* value = nullptr) {
  Launch& L = *w.L;
  Cta& c = *w.cta;
  if (addr < SHARED_BASE || addr + n > SHARED_BASE + c.smem.size())
    fatal(w, I,
          "shared access out of bounds, lane " + std::to_string(lane) + ": " + std::to_string(n) +
              " bytes at " + std::to_string(s64(addr) - s64(SHARED_BASE)) + " of " +
              std::to_string(c.smem.size()));
  if (addr % n)
    fatal(w, I,
          "misaligned shared access, lane " + std::to_string(lane) + ": " + std::to_string(n) + " bytes at " +
              std::to_string(addr - SHARED_BASE));
  u64 o = addr - SHARED_BASE;
  if (L.cfg.racecheck || L.cfg.initcheck) {
    u32 gran = L.M->sGran, pc = &I - L.M->code.data();
    u32 bit = 1u << w.idx;
    u64 first = o / gran, last = (o + n - 1) / gran;
    for (u64 g = first; g <= last; g++) {
      if (used != FULL && !(used >> (g * gran - o) & 1)) continue;
      SShadow& s = c.sh[g];
      auto at = [&] { return "shared offset " + std::to_string(g * gran); };
      if (L.cfg.racecheck) {
        bool foreignWrite = s.wPhase == c.phase && s.wWarp != w.idx;
        bool foreignRead = s.rPhase == c.phase && (s.rMask & ~bit);
        bool foreignAtomic = s.aPhase == c.phase && (s.aMask & ~bit);
        if (kind == S_READ || kind == S_WG_ISSUE) {
          if (foreignWrite)
            report(w, I, "shared race", s.wPc,
                   at() + " read after a write of warp " + std::to_string(s.wWarp) +
                       " without a barrier between");
          if (foreignAtomic)
            report(w, I, "shared race", NONE,
                   at() + " read after an atomic of another warp without a barrier between");
          if (s.pendW) report(w, I, "read of a cp.async not waited for", s.wPc, at());
        } else if (kind == S_WRITE || kind == S_ASYNC_ISSUE || kind == S_ATOMIC) {
          if (foreignWrite && value && !memcmp(&c.smem[g * gran], value + (g * gran - o), gran))
            L.sameValue++;
          // Copies of one value whose last bits differ between lanes, stored by several warps: as within a
          // warp.
          else if (foreignWrite && s.wPc == pc)
            report(
                w, I, "conflicting shared store", s.wPc,
                at() + " written by warps " + std::to_string(s.wWarp) + " and another with different values");
          else if (foreignWrite)
            report(w, I, "shared race", s.wPc,
                   at() + " written after a write of warp " + std::to_string(s.wWarp) +
                       " without a barrier between");
          if (foreignRead)
            report(w, I, "shared race", s.rPc,
                   at() + " written after a read of another warp without a barrier between");
          if (foreignAtomic && kind != S_ATOMIC)
            report(w, I, "shared race", NONE,
                   at() + " written after an atomic of another warp without a barrier between");
          if (s.pendW) report(w, I, "write over a cp.async not waited for", s.wPc, at());
          if (s.pendR) report(w, I, "write over what a wgmma in flight reads", s.rPc, at());
        }
      }
      if (L.cfg.initcheck && (kind == S_READ || kind == S_ATOMIC || kind == S_WG_ISSUE) && !s.init)
        report(w, I, "uninitialised shared read", NONE, at() + ", lane " + std::to_string(lane));
      switch (kind) {
        case S_WG_DONE:
          s.pendR--;  // fallthrough
        case S_READ:
          if (s.rPhase != c.phase) {
            s.rPhase = c.phase;
            s.rMask = 0;
          }
          s.rMask |= bit;
          s.rPc = pc;
          break;
        case S_WG_ISSUE:
          s.pendR++;
          if (s.rPhase != c.phase) {
            s.rPhase = c.phase;
            s.rMask = 0;
          }
          s.rMask |= bit;
          s.rPc = pc;
          break;
        case S_ASYNC_ISSUE:
          s.pendW++;
          s.wPhase = c.phase;
          s.wWarp = w.idx;
          s.wPc = pc;
          break;
        case S_ASYNC_DONE:
          s.pendW--;
          s.wPhase = c.phase;
          s.wWarp = w.idx;
          s.wPc = pc;
          s.init = 1;
          break;
        case S_WRITE:
          s.wPhase = c.phase;
          s.wWarp = w.idx;
          s.wPc = pc;
          s.init = 1;
          break;
        case S_ATOMIC:
          if (s.aPhase != c.phase) {
            s.aPhase = c.phase;
            s.aMask = 0;
          }
          s.aMask |= bit;
          s.init = 1;
          break;
      }
    }
  }
  return c.smem.data() + o;
}
// Two lanes of one store instruction with different values at one address: which one stays is undefined.
inline void sameStore(Warp& w, const Ins& I, const u8* at, const u8* value, u32 n, u32& seq,
                      const char* what) {
  if (seq == w.L->seq && memcmp(at, value, n))
    report(w, I, what, NONE, "lanes of one store write different values to one address");
  seq = w.L->seq;
}

}  // namespace ptx
