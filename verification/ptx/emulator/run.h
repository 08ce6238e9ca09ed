// Running a grid.
#pragma once

#include "memory.h"
#include "tensor.h"

#include <cfenv>
#include <sstream>

namespace ptx {

// The lanes at the lowest PC that are not waiting for others become the current group.
bool regroup(Warp& w) {
  for (u32 mm = w.cur; mm; mm &= mm - 1) w.tpc[__builtin_ctz(mm)] = w.pc;
  u32 can = w.live & ~w.stalled;
  if (!can) {
    w.cur = 0;
    return false;
  }
  u32 least = NONE;
  for (u32 mm = can; mm; mm &= mm - 1) least = std::min(least, w.tpc[__builtin_ctz(mm)]);
  u32 cur = 0, next = NONE;
  for (u32 mm = w.live; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    if (w.tpc[l] == least)
      cur |= 1u << l;
    else if (w.tpc[l] > least)
      next = std::min(next, w.tpc[l]);
  }
  w.stalled &= ~cur;
  w.cur = cur;
  w.pc = least;
  w.stop = next;
  if (cur != w.live) w.L->divergent++;
  return true;
}
void releaseBarrier(Cta& c) {
  u32 n = 0;
  for (auto& w : c.warps)
    if (w->state != 2) n++;
  if (!n || c.atBar < n) return;
  c.atBar = 0;
  c.phase++;
  Launch& L = *c.warps[0]->L;
  L.barriers++;
  if (L.cfg.racecheck) barrierJoin(c);
  for (auto& w : c.warps)
    if (w->state == 1) {
      w->state = 0;
      w->slot = L.runnable.size();
      L.runnable.push_back(w.get());
    }
}
void unschedule(Warp& w) {
  Launch& L = *w.L;
  Warp* last = L.runnable.back();
  L.runnable[w.slot] = last;
  last->slot = w.slot;
  L.runnable.pop_back();
}
// Runs the warp for at most `budget` instructions, or until it blocks.
void runWarp(Warp& w, u32 budget) {
  Launch& L = *w.L;
  const Ins* code = L.M->code.data();
  while (budget--) {
    if (w.pc >= w.stop || !w.cur) {
      if (!regroup(w)) {
        int l = __builtin_ctz(w.live);
        const Ins& I = code[w.tpc[l]];
        fatal(w, I, "the lanes of the warp wait for each other at different instructions");
      }
    }
    const Ins& I = code[w.pc];
    u32 m = w.cur;
    if (I.hasP) {
      u32 p = reg<u32>(w, I.p)[0];
      m &= I.negP ? ~p : p;
    }
    L.tick++;
    L.seq++;
    w.executed++;
    L.counts[I.cls]++;
    L.lanes += __builtin_popcount(m);
    switch (I.kind) {
      case K_ALU:
      case K_MEM:
        if (m) I.fn(w, I, m);
        w.pc++;
        break;
      case K_NOP:
        w.pc++;
        break;
      case K_BRA:
        if (m == w.cur) {
          w.pc = I.target;
          if (w.cur != w.live) {
            w.stop = 0;
          }
        } else if (!m)
          w.pc++;
        else {
          u32 rest = w.cur & ~m;
          for (u32 mm = m; mm; mm &= mm - 1) w.tpc[__builtin_ctz(mm)] = I.target;
          w.pc++;
          w.cur = rest;
          regroup(w);
        }
        break;
      case K_SYNC: {
        if (I.hasP && !m) {
          w.pc++;
          break;
        }
        u32 want = I.needAll || I.member == NONE ? FULL : reg<u32>(w, I.member)[__builtin_ctz(m)];
        if ((m & want) != want) {
          if (want & ~w.live) fatal(w, I, "waits for lanes that have left");
          w.stalled |= w.cur;
          w.executed--;
          if (!regroup(w)) fatal(w, I, "the lanes of the warp wait for each other at different instructions");
          break;
        }
        if (m & ~want) fatal(w, I, "lanes outside the member mask");
        I.fn(w, I, m);
        w.pc++;
        break;
      }
      case K_BAR: {
        if (I.hasP && !m) {
          w.pc++;
          break;
        }
        if (m != w.live) {
          w.stalled |= w.cur;
          w.executed--;
          if (!regroup(w)) fatal(w, I, "bar.sync in a warp that has diverged");
          break;
        }
        if (I.b != NONE && reg<u32>(w, I.b)[0] != L.nthreads)
          fatal(w, I, "a barrier of some threads is not emulated");
        u32 id = reg<u32>(w, I.a)[0];
        for (auto& o : w.cta->warps)
          if (o->state == 1 && o->barId != id) fatal(w, I, "warps of the CTA wait at different barriers");
        w.barId = id;
        w.state = 1;
        w.pc++;
        w.cta->atBar++;
        unschedule(w);
        releaseBarrier(*w.cta);
        return;
      }
      case K_EXIT: {
        if (!m) {
          w.pc++;
          break;
        }
        w.live &= ~m;
        u32 rest = w.cur & ~m;
        w.pc++;
        w.cur = rest;
        if (w.live) {
          if (!rest) {
            w.cur = 0;
            if (!regroup(w)) fatal(w, I, "lanes wait for others that have left");
          }
          break;
        }
        if (!w.wgAcc.empty()) report(w, I, "wgmma not waited for at the end", NONE, "");
        w.state = 2;
        unschedule(w);
        w.cta->alive--;
        L.maxWarpInstr = std::max(L.maxWarpInstr, w.executed);
        releaseBarrier(*w.cta);
        return;
      }
      case K_BAD:
        fatal(w, I, "not emulated");
    }
    if (w.cta->sleepUntil > L.tick) return;
  }
}

void startCta(Launch& L, u32 lin) {
  std::unique_ptr<Cta> c;
  if (!L.pool.empty()) {
    c = std::move(L.pool.back());
    L.pool.pop_back();
  } else {
    c.reset(new Cta);
    for (u32 k = 0; k < L.nwarps; k++) {
      c->warps.emplace_back(new Warp);
      auto& w = *c->warps.back();
      w.mem.assign(L.M->regBytes + 256, 0);
      w.R = reinterpret_cast<u8*>((reinterpret_cast<u64>(w.mem.data()) + 63) & ~63ull);
    }
  }
  c->lin = lin;
  c->x = lin % L.grid[0];
  c->y = lin / L.grid[0] % L.grid[1];
  c->z = lin / L.grid[0] / L.grid[1];
  c->smem.resize(L.shared);
  for (size_t k = 0; k < c->smem.size(); k++) c->smem[k] = u8(0xA5 + k * 7);
  if (L.cfg.racecheck || L.cfg.initcheck) c->sh.assign(L.shared / L.M->sGran + 2, SShadow());
  c->phase = 1;
  c->atBar = 0;
  c->alive = L.nwarps;
  c->sleepUntil = 0;
  for (u32 k = 0; k < L.nwarps; k++) {
    Warp& w = *c->warps[k];
    u8* R = w.R;
    vector<u8> mem = std::move(w.mem);
    {
      Warp fresh;
      w.pc = 0;
      w.cpOpen = CpGroup();
      w.cpGroups.clear();
      w.wgOpen.clear();
      w.wgGroups.clear();
      w.wgAcc.clear();
      w.lastSpin.clear();
      w.fenced = false;
      w.fenceVC.reset();
      w.pendAcq.reset();
    }
    w.mem = std::move(mem);
    w.R = R;
    w.L = &L;
    w.cta = c.get();
    w.idx = k;
    w.gid = lin * L.nwarps + k;
    u32 have = std::min(32u, L.nthreads - 32 * k);
    w.live = have == 32 ? FULL : (1u << have) - 1;
    w.cur = w.live;
    w.pc = 0;
    w.stop = NONE;
    w.stalled = 0;
    w.state = 0;
    w.executed = 0;
    for (int l = 0; l < 32; l++) w.tpc[l] = 0;
    w.local.assign(size_t(L.M->localBytes) * 32, 0xA5);
    w.vc.own.assign(L.nwarps, 0);
    w.vc.own[k] = 1;
    w.vc.ext.reset();
    for (size_t j = 0; j < L.M->const8.size(); j++) {
      u32 o = L.M->const8[j].first;
      u64 v = L.M->const8[j].second;
      switch (L.M->constSize[j]) {
        case 1:
          reg<u32>(w, o)[0] = v ? FULL : 0;
          break;
        case 2:
          for (int l = 0; l < 32; l++) reg<u16>(w, o)[l] = u16(v);
          break;
        case 4:
          for (int l = 0; l < 32; l++) reg<u32>(w, o)[l] = u32(v);
          break;
        case 8:
          for (int l = 0; l < 32; l++) reg<u64>(w, o)[l] = v;
          break;
      }
    }
    for (auto& kv : L.M->special) {
      const string& n = kv.first;
      u32* d = reg<u32>(w, kv.second);
      for (int l = 0; l < 32; l++) {
        u32 tid = 32 * k + l;
        d[l] = n == "%tid.x"                                          ? tid
               : n == "%ntid.x"                                       ? L.nthreads
               : n == "%ctaid.x"                                      ? c->x
               : n == "%ctaid.y"                                      ? c->y
               : n == "%ctaid.z"                                      ? c->z
               : n == "%nctaid.x"                                     ? L.grid[0]
               : n == "%nctaid.y"                                     ? L.grid[1]
               : n == "%nctaid.z"                                     ? L.grid[2]
               : n == "%laneid"                                       ? l
               : n == "%warpid"                                       ? k
               : n == "%nwarpid"                                      ? L.nwarps
               : n == "%ntid.y" || n == "%ntid.z"                     ? 1
               : n == "%lanemask_eq"                                  ? 1u << l
               : n == "%lanemask_lt"                                  ? (1u << l) - 1
               : n == "%lanemask_le"                                  ? (2u << l) - 1
               : n == "%lanemask_gt"                                  ? ~((2u << l) - 1)
               : n == "%lanemask_ge"                                  ? ~((1u << l) - 1)
               : n == "%dynamic_smem_size" || n == "%total_smem_size" ? L.shared
               : n == "%smid"                                         ? lin % 132
               : n == "%nsmid"                                        ? 132
                                                                      : 0;
      }
    }
    w.slot = L.runnable.size();
    L.runnable.push_back(&w);
  }
  L.resident.push_back(std::move(c));
}

string quote(const string& s) {
  string r = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') {
      r += '\\';
      r += c;
    } else if ((unsigned char)c < 32)
      r += ' ';
    else
      r += c;
  }
  return r + "\"";
}

string runLaunch(Module& M, const u32* grid, u32 nthreads, u32 shared, u32 coop, const u8* params,
                 const Config& cfg, const AllocIn* allocs, u32 nalloc, const SpanIn* spans,
                 const u32* spanParam, u32 nspan) {
  Launch L;
  L.M = &M;
  L.cfg = cfg;
  for (int k = 0; k < 3; k++) L.grid[k] = grid[k];
  L.nthreads = nthreads;
  L.nwarps = (nthreads + 31) / 32;
  L.shared = shared;
  L.coop = coop;
  L.params.assign(params, params + M.paramBytes);
  for (u32 k = 0; k < nalloc; k++) {
    Alloc A;
    A.base = allocs[k].base;
    A.size = allocs[k].size;
    A.uninit = allocs[k].uninit;
    A.init = reinterpret_cast<u8*>(allocs[k].initMap);
    A.label = allocs[k].label;
    L.allocs.push_back(std::move(A));
  }
  for (auto& g : M.globals) {
    Alloc A;
    A.base = g->addr;
    A.size = g->data.size();
    A.uninit = false;
    A.init = nullptr;
    A.label = u64(-1);
    A.track = false;
    L.allocs.push_back(std::move(A));
  }
  std::sort(L.allocs.begin(), L.allocs.end(), [](const Alloc& a, const Alloc& b) { return a.base < b.base; });
  L.spans.resize(64);
  for (u32 k = 0; k < nspan; k++)
    if (spanParam[k] < 64) L.spans[spanParam[k]].push_back(spans[k]);
  // Reads of what no instruction can write need no record.
  for (auto& A : L.allocs) {
    bool w = M.writtenParams == ~0ull;
    for (u32 k = 0; k < 64; k++)
      if (M.writtenParams >> k & 1)
        for (auto& s : L.spans[k])
          if (s.lo < A.base + A.size && s.hi > A.base) w = true;
    A.track = w;
  }
  L.rng = 0x9E3779B97F4A7C15ull * (cfg.seed + 1) | 1;
  for (int k = 0; k < 8; k++) L.rnd();
  u32 total = grid[0] * grid[1] * grid[2];
  L.totalWarps = total * L.nwarps;
  vector<u32> order(total);
  for (u32 k = 0; k < total; k++) order[k] = k;
  u32 starting = total - std::min(total, cfg.skipCtas);
  order.resize(starting);
  if (cfg.seed)
    for (u32 k = starting; k > 1; k--) std::swap(order[k - 1], order[L.rnd() % k]);
  u32 window = coop ? total : std::max(1u, cfg.resident), next = 0, finished = 0;
  string fatalText;
  u32 idle = 0;
  int oldRound = fegetround();
  fesetround(FE_TONEAREST);
  try {
    while (finished < starting) {
      while (L.resident.size() < window && next < starting) startCta(L, order[next++]);
      if (L.runnable.empty()) {
        string what = "deadlock: every warp waits;";
        for (auto& c : L.resident)
          for (auto& w : c->warps)
            if (w->state == 1) {
              what += " " + where(*w, M.code[w->pc - 1]);
              break;
            }
        throw Fatal{what};
      }
      Warp* w = L.runnable[L.rnd() % L.runnable.size()];
      if (w->cta->sleepUntil > L.tick) {
        if (++idle > 4 * L.runnable.size()) {
          L.tick += 64;
          idle = 0;
        }
        continue;
      }
      idle = 0;
      u64 r = L.rnd();
      u32 budget = (r & 3) == 0 ? 1 + (r >> 8) % 8 : 1 + (r >> 8) % std::max(1u, cfg.maxBudget);
      Cta* c = w->cta;
      runWarp(*w, budget);
      if (c->alive == 0) {
        finished++;
        for (size_t k = 0; k < L.resident.size(); k++)
          if (L.resident[k].get() == c) {
            L.pool.push_back(std::move(L.resident[k]));
            L.resident.erase(L.resident.begin() + k);
            break;
          }
      }
      if (L.tick > cfg.maxInstructions)
        throw Fatal{"instruction limit: " + std::to_string(L.tick) + "; " +
                    where(*w, M.code[std::min<size_t>(w->pc, M.code.size() - 1)])};
    }
  } catch (Fatal& f) {
    fatalText = f.what;
  }
  fesetround(oldRound);
  std::ostringstream out;
  u64 all = 0;
  for (int k = 0; k < C_COUNT; k++) all += L.counts[k];
  out << "{\"fatal\": " << quote(fatalText) << ", \"instructions\": " << all << ", \"lanes\": " << L.lanes
      << ", \"barriers\": " << L.barriers << ", \"divergent\": " << L.divergent << ", \"spins\": " << L.spins
      << ", \"same_value_writes\": " << L.sameValue << ", \"longest_warp\": " << L.maxWarpInstr
      << ", \"global_requests\": " << L.gReq << ", \"bytes_read\": " << L.gBytesR
      << ", \"bytes_written\": " << L.gBytesW << ", \"sectors_read\": " << L.gSecR
      << ", \"sectors_written\": " << L.gSecW << ", \"shared_requests\": " << L.sReq
      << ", \"shared_wavefronts\": " << L.sWave << ", \"bank_conflicts\": " << L.sConf << ", \"classes\": {";
  bool first = true;
  for (int k = 0; k < C_COUNT; k++)
    if (L.counts[k]) {
      out << (first ? "" : ", ") << quote(CLASS_NAMES[k]) << ": " << L.counts[k];
      first = false;
    }
  out << "}, \"reports\": [";
  first = true;
  for (auto& kv : L.reports) {
    out << (first ? "" : ", ") << "[" << kv.second.first << ", " << quote(kv.second.second) << "]";
    first = false;
    if (out.tellp() > 2000000) break;
  }
  out << "]}";
  return out.str();
}

}  // namespace ptx
