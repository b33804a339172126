/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Processes that begin, that begin a program and that end. */

/* Returns whether the ring took it. */
static __always_inline bool submit_process(__u8 event, __u64 file)
{
	__u32 key = PODWIRE_KIND_PROCESS;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	struct podwire_process_record *record;
	__u32 lane;

	if (!counted)
		return false;
	record = bpf_ringbuf_reserve(&processes, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		return false;
	}
	record->time_ns = bpf_ktime_get_ns();
	record->sequence = count_submitted(counted, PODWIRE_KIND_PROCESS, &lane);
	record->cgroup_id = bpf_get_current_cgroup_id();
	record->pid = bpf_get_current_pid_tgid() >> 32;
	record->cpu = lane;
	record->event = event;
	record->pad = 0;
	record->file = file;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return true;
}

enum { PROT_EXEC = 4 };
#define GOLDEN_RATIO 0x9e3779b97f4a7c15ULL

/*
 * mmap() of code. Libraries come by it whenever a program is started or asks for them, so that a TLS
 * library is known at its first use; the file of the program itself is told of with exec. Twice
 * nothing is told: the entry in `known_files` is made once.
 */
static __always_inline int exit_map(struct pt_regs *regs, long result)
{
	struct inode *inode;
	struct file *file;
	__u8 value = 1;
	__u64 key;

	if (!podwire_tls || !(CALL_ARGUMENT_3(regs) & PROT_EXEC) || (__s32)CALL_ARGUMENT_5(regs) < 0)
		return 0;
	if ((__u64)result >= -4095ULL || is_compat(current_task()) || is_own_process())
		return 0;
	file = file_of_fd(CALL_ARGUMENT_5(regs));
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	/* One number for all three; the generation tells files apart that had an inode one after the
	 * other. */
	key = (__u64)BPF_CORE_READ(inode, i_ino) * GOLDEN_RATIO ^
	      ((__u64)BPF_CORE_READ(inode, i_sb, s_dev) << 32 | BPF_CORE_READ(inode, i_generation));
	if (bpf_map_update_elem(&known_files, &key, &value, BPF_NOEXIST))
		return 0;
	if (!submit_process(PODWIRE_MAPPED, key))
		bpf_map_delete_elem(&known_files, &key);
	return 0;
}

/* User space may refuse a process that has ended meanwhile: what was said of it is not said of the next
 * one with its id. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 pid = BPF_CORE_READ(child, tgid);

	if (pid == BPF_CORE_READ(child, pid))
		bpf_map_delete_elem(&refused, &pid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task)
{
	if (podwire_tls)
		forget_goroutines();
	submit_process(PODWIRE_EXEC, 0);
	return 0;
}

/* The last thread to go ends the process; two that go together may both say so. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	struct call_state *call = current_call();
	__u32 pid;

	if (call && call->is_active)
		end_unseen(call);
	forget_call();
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	if (podwire_tls)
		forget_goroutines();
	pid = bpf_get_current_pid_tgid() >> 32;
	bpf_map_delete_elem(&refused, &pid);
	submit_process(PODWIRE_EXIT, 0);
	return 0;
}
