// host/switch.h: leave one stack and continue on another.
//
//   switch_stack(&mine, other)   saves the callee-saved registers on this stack, stores where they
//                                are in `mine`, and returns on the stack that `other` names
//   prepare_stack(top, entry)    a stack that begins with a call of entry(), which never returns
//
// Hand-written for x86-64 and AArch64 (a few nanoseconds; ucontext makes a system call each time).
#ifndef SVDQ_CUDA_HOST_SWITCH_H
#define SVDQ_CUDA_HOST_SWITCH_H

#include <stdint.h>
#include <string.h>

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#include <ucontext.h>
#define SVDQ_HOST_UCONTEXT 1
#endif

#if !defined(SVDQ_HOST_UCONTEXT)

// In a group of its own, so that several kernels in one shared object keep one copy.
__asm__(
    ".pushsection .text.svdq_switch_stack,\"axG\",%progbits,svdq_switch_stack,comdat\n"
    ".weak svdq_switch_stack\n"
    ".hidden svdq_switch_stack\n"
    ".type svdq_switch_stack, %function\n"
    "svdq_switch_stack:\n"
#if defined(__x86_64__)
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  popq %rcx\n"
    "  jmp *%rcx\n"  // a ret would be predicted to go back where this call came from
#else
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
#endif
    ".size svdq_switch_stack, .-svdq_switch_stack\n"
    ".popsection\n");

extern "C" __attribute__((visibility("hidden"))) void svdq_switch_stack(void** mine, void* other);

namespace svdq::host {

using Stack = void*;

inline void switch_stack(Stack* mine, Stack other) { svdq_switch_stack(mine, other); }

inline Stack prepare_stack(char* bottom, size_t bytes, void (*entry)()) {
  char* const top = bottom + bytes;  // page aligned
#if defined(__x86_64__)
  // Six registers, the return address, and one word so that entry sees the alignment of a call.
  void** frame = reinterpret_cast<void**>(top) - 8;
  memset(frame, 0, 8 * sizeof(void*));
  memcpy(&frame[6], &entry, sizeof entry);
#else
  void** frame = reinterpret_cast<void**>(top - 160);
  memset(frame, 0, 160);
  memcpy(&frame[11], &entry, sizeof entry);  // x30, the link register
#endif
  return frame;
}

}  // namespace svdq::host

#else

namespace svdq::host {

struct Stack {
  ucontext_t* context = nullptr;
};

inline void switch_stack(Stack* mine, Stack other) {
  ucontext_t here;
  mine->context = &here;  // on this stack, which lives until it is switched to
  swapcontext(&here, other.context);
}

inline Stack prepare_stack(char* bottom, size_t bytes, void (*entry)()) {
  auto* const context = reinterpret_cast<ucontext_t*>(bottom);
  getcontext(context);
  context->uc_stack.ss_sp = bottom + sizeof(ucontext_t);
  context->uc_stack.ss_size = bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return {context};
}

}  // namespace svdq::host

#endif

#endif  // SVDQ_CUDA_HOST_SWITCH_H
