// A functional emulator for the PTX that compilers write, with checkers: the C interface. See README.md.
//
// A module is parsed once into decoded instructions; a launch runs a grid of CTAs. Registers of a warp are
// arrays of 32 lanes (predicates are 32-bit masks), so an instruction is a loop over lanes. Each lane has its
// own PC: the lanes at the lowest PC run together (reconvergence by min-PC), and instructions that need other
// lanes wait for them. Warps are interleaved pseudo-randomly at instruction boundaries.
#include "decode.h"
#include "run.h"

using namespace ptx;

// ----------------------------------------------------------------------------------------------------------------
// C API
#pragma GCC visibility push(default)
extern "C" {
void* emu_load(const char* text) {
  auto* M = new Module;
  try {
    parseModule(*M, text);
  } catch (Fatal& f) {
    M->error = f.what;
  }
  return M;
}
const char* emu_module_error(void* m) {
  return static_cast<Module*>(m)->error.c_str();
}
const char* emu_entry(void* m) {
  return static_cast<Module*>(m)->entry.c_str();
}
u32 emu_param_count(void* m) {
  return static_cast<Module*>(m)->params.size();
}
u32 emu_param_bytes(void* m) {
  return static_cast<Module*>(m)->paramBytes;
}
u32 emu_param_offset(void* m, u32 k) {
  return static_cast<Module*>(m)->params[k].offset;
}
u32 emu_param_size(void* m, u32 k) {
  return static_cast<Module*>(m)->params[k].size;
}
u64 emu_written_params(void* m) {
  return static_cast<Module*>(m)->writtenParams;
}
u32 emu_code_size(void* m) {
  return static_cast<Module*>(m)->code.size();
}
const char* emu_bad(void* m) {
  static string s;
  s.clear();
  for (auto& I : static_cast<Module*>(m)->code)
    if (I.kind == K_BAD) s += I.text + "\n";
  return s.c_str();
}
void emu_unload(void* m) {
  delete static_cast<Module*>(m);
}
// Returns a malloc'ed JSON report; "fatal" is set if the launch was stopped.
char* emu_launch(void* m, const u32* grid, u32 nthreads, u32 shared, u32 coop, const u8* params,
                 const Config* cfg, const AllocIn* allocs, u32 nalloc, const SpanIn* spans,
                 const u32* spanParam, u32 nspan) {
  string out = runLaunch(*static_cast<Module*>(m), grid, nthreads, shared, coop, params, *cfg, allocs, nalloc,
                         spans, spanParam, nspan);
  return strdup(out.c_str());
}
void emu_free(char* p) {
  free(p);
}
}
#pragma GCC visibility pop
