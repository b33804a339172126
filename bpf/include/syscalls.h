/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * System calls of interest by number (arch/x86/entry/syscalls/syscall_64.tbl,
 * include/uapi/asm-generic/unistd.h). pread and pwrite fail on sockets; preadv2 and pwritev2 with
 * offset -1 are readv and writev. Exiting and executing tasks are recognised by what they do.
 */
#ifndef PODWIRE_SYSCALLS_H
#define PODWIRE_SYSCALLS_H

const volatile __u8 call_by_number[512] = {
#if defined(__TARGET_ARCH_x86)
	[0] = PODWIRE_CALL_READ,
	[1] = PODWIRE_CALL_WRITE,
	[3] = CALL_CLOSE,
	[9] = CALL_MAP,
	[19] = PODWIRE_CALL_READV,
	[20] = PODWIRE_CALL_WRITEV,
	[33] = CALL_CLOSE, /* dup2 */
	[40] = PODWIRE_CALL_SENDFILE,
	[42] = CALL_CONNECT,
	[43] = CALL_ACCEPT,
	[44] = PODWIRE_CALL_SENDTO,
	[45] = PODWIRE_CALL_RECVFROM,
	[46] = PODWIRE_CALL_SENDMSG,
	[47] = PODWIRE_CALL_RECVMSG,
	[275] = PODWIRE_CALL_SPLICE,
	[288] = CALL_ACCEPT, /* accept4 */
	[292] = CALL_CLOSE,  /* dup3 */
	[299] = PODWIRE_CALL_RECVMMSG,
	[307] = PODWIRE_CALL_SENDMMSG,
	[327] = PODWIRE_CALL_READV,  /* preadv2 */
	[328] = PODWIRE_CALL_WRITEV, /* pwritev2 */
	[436] = CALL_CLOSE,	     /* close_range */
#elif defined(__TARGET_ARCH_arm64)
	[24] = CALL_CLOSE, /* dup3 */
	[57] = CALL_CLOSE,
	[63] = PODWIRE_CALL_READ,
	[64] = PODWIRE_CALL_WRITE,
	[65] = PODWIRE_CALL_READV,
	[66] = PODWIRE_CALL_WRITEV,
	[71] = PODWIRE_CALL_SENDFILE,
	[76] = PODWIRE_CALL_SPLICE,
	[202] = CALL_ACCEPT,
	[203] = CALL_CONNECT,
	[206] = PODWIRE_CALL_SENDTO,
	[207] = PODWIRE_CALL_RECVFROM,
	[211] = PODWIRE_CALL_SENDMSG,
	[212] = PODWIRE_CALL_RECVMSG,
	[222] = CALL_MAP,
	[242] = CALL_ACCEPT, /* accept4 */
	[243] = PODWIRE_CALL_RECVMMSG,
	[269] = PODWIRE_CALL_SENDMMSG,
	[286] = PODWIRE_CALL_READV,  /* preadv2 */
	[287] = PODWIRE_CALL_WRITEV, /* pwritev2 */
	[436] = CALL_CLOSE,	     /* close_range */
#else
#error "define __TARGET_ARCH_x86 or __TARGET_ARCH_arm64"
#endif
};

static __always_inline __u8 call_of_number(long number)
{
	__u64 index = number;

	return index < sizeof(call_by_number) ? call_by_number[index & 511] : 0;
}

/* 32-bit tasks number their calls differently; they are left out. */
static __always_inline bool is_compat(struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return READ_TASK(task, thread_info.status) & 2; /* TS_COMPAT */
#else
	return READ_TASK(task, thread_info.flags) & (1 << 22); /* TIF_32BIT */
#endif
}

#if defined(__TARGET_ARCH_x86)
#define CALL_NUMBER_REGISTER orig_ax
#define CALL_ARGUMENT_1(regs) ((regs)->di)
#define CALL_ARGUMENT_2(regs) ((regs)->si)
#define CALL_ARGUMENT_3(regs) ((regs)->dx)
#define CALL_ARGUMENT_4(regs) ((regs)->r10)
#define CALL_ARGUMENT_5(regs) ((regs)->r8)
#else
#define CALL_NUMBER_REGISTER syscallno
#define CALL_ARGUMENT_1(regs) ((regs)->regs[0])
#define CALL_ARGUMENT_2(regs) ((regs)->regs[1])
#define CALL_ARGUMENT_3(regs) ((regs)->regs[2])
#define CALL_ARGUMENT_4(regs) ((regs)->regs[3])
#define CALL_ARGUMENT_5(regs) ((regs)->regs[4])
#endif

#endif
