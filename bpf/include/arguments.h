/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Arguments, result and stack of a function at its entry and its return, as probes see them. Of Go:
 * its register calling convention (Go 1.17, on arm64 1.18; src/cmd/compile/abi-internal.md).
 */
#ifndef PODWIRE_ARGUMENTS_H
#define PODWIRE_ARGUMENTS_H

#if defined(__TARGET_ARCH_x86)
#define ARGUMENT_1(ctx) ((__u64)(ctx)->di)
#define ARGUMENT_2(ctx) ((__u64)(ctx)->si)
#define ARGUMENT_3(ctx) ((__u64)(ctx)->dx)
#define ARGUMENT_4(ctx) ((__u64)(ctx)->cx)
/* Of a function whose result is too large for registers: where it is to be is one more. */
#define LARGE_ARGUMENT_2(ctx) ARGUMENT_3(ctx)
#define LARGE_ARGUMENT_3(ctx) ARGUMENT_4(ctx)
#define IS_LARGE_RESULT(ctx, first) ((__u64)(ctx)->ax == (first)) /* of the arguments */
#define RESULT(ctx) ((long)(ctx)->ax)
#define RESULT_2(ctx) ((__u64)(ctx)->dx)
#define FRAME_AT_ENTRY(ctx) ((__u64)(ctx)->sp)
#define FRAME_AT_RETURN(ctx) ((__u64)(ctx)->sp - 8) /* the return address has been popped */
#define GO_ARGUMENT_1(ctx) ((__u64)(ctx)->ax)
#define GO_ARGUMENT_2(ctx) ((__u64)(ctx)->bx)
#define GO_ARGUMENT_3(ctx) ((__u64)(ctx)->cx)
#define GOROUTINE(ctx) ((__u64)(ctx)->r14)
#elif defined(__TARGET_ARCH_arm64)
#define ARGUMENT_1(ctx) ((__u64)(ctx)->regs[0])
#define ARGUMENT_2(ctx) ((__u64)(ctx)->regs[1])
#define ARGUMENT_3(ctx) ((__u64)(ctx)->regs[2])
#define ARGUMENT_4(ctx) ((__u64)(ctx)->regs[3])
#define LARGE_ARGUMENT_2(ctx) ARGUMENT_2(ctx)
#define LARGE_ARGUMENT_3(ctx) ARGUMENT_3(ctx)
#define IS_LARGE_RESULT(ctx, first) false /* nothing shows it */
#define RESULT(ctx) ((long)(ctx)->regs[0])
#define RESULT_2(ctx) ((__u64)(ctx)->regs[1])
#define FRAME_AT_ENTRY(ctx) ((__u64)(ctx)->sp)
#define FRAME_AT_RETURN(ctx) ((__u64)(ctx)->sp)
#define GO_ARGUMENT_1(ctx) ARGUMENT_1(ctx)
#define GO_ARGUMENT_2(ctx) ARGUMENT_2(ctx)
#define GO_ARGUMENT_3(ctx) ARGUMENT_3(ctx)
#define GOROUTINE(ctx) ((__u64)(ctx)->regs[28])
#endif

#endif
