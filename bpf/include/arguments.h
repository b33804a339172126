/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Arguments, result and stack of a function at its entry and its return, as probes see them, and the
 * registers of a thread outside the kernel. Of Go: its register calling convention (Go 1.17, on arm64
 * 1.18; src/cmd/compile/abi-internal.md).
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
#define GOROUTINE_REGISTER r14
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
#define GOROUTINE_REGISTER regs[28]
#endif

enum { KERNEL_STACK = 16384 };

/* task_pt_regs(), as it was until v5.15, where the helper came */
static __always_inline struct pt_regs *user_regs(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, stack) + KERNEL_STACK - bpf_core_type_size(struct pt_regs);
}

/* A register of the current thread, as it was when the thread last left user space. */
#define READ_USER_REGS(member)                                                                     \
	(bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs) ?                     \
		 ((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()))->member :        \
		 BPF_CORE_READ(user_regs(), member))

#endif
