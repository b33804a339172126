/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Arguments, result and stack of a function at its entry and its return, as probes see them. */
#ifndef PODWIRE_ARGUMENTS_H
#define PODWIRE_ARGUMENTS_H

#if defined(__TARGET_ARCH_x86)
#define ARGUMENT_1(ctx) ((__u64)(ctx)->di)
#define ARGUMENT_2(ctx) ((__u64)(ctx)->si)
#define ARGUMENT_3(ctx) ((__u64)(ctx)->dx)
#define ARGUMENT_4(ctx) ((__u64)(ctx)->cx)
#define RESULT(ctx) ((long)(ctx)->ax)
#define FRAME_AT_ENTRY(ctx) ((__u64)(ctx)->sp)
#define FRAME_AT_RETURN(ctx) ((__u64)(ctx)->sp - 8) /* the return address has been popped */
#elif defined(__TARGET_ARCH_arm64)
#define ARGUMENT_1(ctx) ((__u64)(ctx)->regs[0])
#define ARGUMENT_2(ctx) ((__u64)(ctx)->regs[1])
#define ARGUMENT_3(ctx) ((__u64)(ctx)->regs[2])
#define ARGUMENT_4(ctx) ((__u64)(ctx)->regs[3])
#define RESULT(ctx) ((long)(ctx)->regs[0])
#define FRAME_AT_ENTRY(ctx) ((__u64)(ctx)->sp)
#define FRAME_AT_RETURN(ctx) ((__u64)(ctx)->sp)
#endif

#endif
