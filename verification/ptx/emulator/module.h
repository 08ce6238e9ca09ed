// A parsed module: decoded instructions, parameters, constants.
#pragma once

#include "numbers.h"

#include <map>
#include <memory>

namespace ptx {

// ---------------------------------------------------------------------------------------------------------
// structures
enum Kind : u8 { K_ALU, K_BRA, K_EXIT, K_BAR, K_SYNC, K_MEM, K_NOP, K_BAD };
enum Class : u8 {
  C_INT,
  C_F32,
  C_F64,
  C_CVT,
  C_MOV,
  C_PRED,
  C_BRANCH,
  C_LDG,
  C_STG,
  C_LDS,
  C_STS,
  C_ATOMG,
  C_ATOMS,
  C_SHFL,
  C_MMA,
  C_WGMMA,
  C_BAR,
  C_CPASYNC,
  C_LDSM,
  C_SFU,
  C_OTHER,
  C_COUNT
};
const char* CLASS_NAMES[C_COUNT] = {
    "int",       "f32",       "f64",       "cvt",       "mov",         "pred",        "branch",
    "ld.global", "st.global", "ld.shared", "st.shared", "atom.global", "atom.shared", "shuffle",
    "mma",       "wgmma",     "barrier",   "cp.async",  "ldmatrix",    "sfu",         "other"};
enum Type : u8 {
  T_NONE,
  T_PRED,
  T_B8,
  T_U8,
  T_S8,
  T_B16,
  T_U16,
  T_S16,
  T_F16,
  T_BF16,
  T_B32,
  T_U32,
  T_S32,
  T_F32,
  T_TF32,
  T_F16X2,
  T_BF16X2,
  T_U16X2,
  T_S16X2,
  T_B64,
  T_U64,
  T_S64,
  T_F64,
  T_F32X2,
  T_B128
};
enum Space : u8 { S_GENERIC, S_GLOBAL, S_SHARED, S_PARAM, S_CONST, S_LOCAL };
enum Sem : u8 { M_WEAK, M_RELAXED, M_ACQUIRE, M_RELEASE, M_ACQ_REL, M_VOLATILE };
enum AtomOp : u8 { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC };

int sizeOf(Type t) {
  switch (t) {
    case T_B8:
    case T_U8:
    case T_S8:
      return 1;
    case T_B16:
    case T_U16:
    case T_S16:
    case T_F16:
    case T_BF16:
      return 2;
    case T_B32:
    case T_U32:
    case T_S32:
    case T_F32:
    case T_TF32:
    case T_F16X2:
    case T_BF16X2:
    case T_U16X2:
    case T_S16X2:
      return 4;
    case T_B64:
    case T_U64:
    case T_S64:
    case T_F64:
    case T_F32X2:
      return 8;
    case T_B128:
      return 16;
    default:
      return 0;
  }
}
bool isSigned(Type t) {
  return t == T_S8 || t == T_S16 || t == T_S32 || t == T_S64;
}
bool isFloat(Type t) {
  return t == T_F16 || t == T_BF16 || t == T_F32 || t == T_F64 || t == T_TF32;
}

struct Warp;
struct Ins;
typedef void (*Fn)(Warp&, const Ins&, u32);

struct Ins {
  Fn fn = nullptr;
  Kind kind = K_ALU;
  Class cls = C_OTHER;
  bool hasP = false, negP = false;
  u32 p = 0;  // guard predicate
  u32 d = NONE, a = NONE, b = NONE, c = NONE, e = NONE, d2 = NONE;
  bool negC = false;    // predicate source operand negated
  u8 szA = 0, szD = 0;  // bytes of the registers a and d
  Type t = T_NONE, t2 = T_NONE;
  int64_t imm = 0;  // address offset, or an operand
  u32 v[4] = {0, 0, 0, 0};
  u16 nv[4] = {0, 0, 0, 0};  // slices of Module::pool
  u8 vsz = 0;                // bytes of the registers of v[0]
  u8 esz = 0;                // bytes of a memory element
  Space space = S_GENERIC;
  Sem sem = M_WEAK;
  AtomOp op = A_ADD;
  u8 sub = 0;  // opcode detail
  u8 flag = 0;
  bool needAll = false;
  u32 member = NONE;  // K_SYNC: lanes that must take part (an operand)
  u32 target = 0;
  u32 used = FULL;  // bytes of the access that count (used_bytes_mask)
  u32 line = 0, loc = 0;
  u64 taint = 0;  // parameters that may flow into the address
  string text;
};

struct Param {
  string name;
  u32 offset, size;
  bool pointer;
};
struct GlobalVar {
  string name;
  vector<u8> data;
  u32 align;
  u64 addr = 0;
  vector<u8> store;
};
struct Module {
  string error, entry, arch;
  vector<Ins> code;
  vector<u32> pool;
  vector<Param> params;
  u32 paramBytes = 0;
  vector<std::pair<u32, u64>> const8;  // (offset, value) of 64-, 32- and 16-bit constants, by register bytes
  vector<u8> constSize;
  u32 regBytes = 0;
  std::map<string, u32> special;
  vector<string> locs;
  u32 staticShared = 0, localBytes = 0;
  u32 sGran = 4, gGran = 4;
  bool hasFence = false;
  u64 writtenParams = 0;
  vector<std::unique_ptr<GlobalVar>> globals;
  u32 reqntid = 0;
};

}  // namespace ptx
