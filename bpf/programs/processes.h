/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Processes that begin a program and that end. */

static __always_inline int submit_process(struct task_struct *task, __u8 event)
{
	__u32 key = PODWIRE_KIND_PROCESS;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	struct podwire_process_record *record;
	__u32 lane;

	if (!counted)
		return 0;
	record = bpf_ringbuf_reserve(&processes, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		return 0;
	}
	record->time_ns = bpf_ktime_get_ns();
	record->sequence = count_submitted(counted, PODWIRE_KIND_PROCESS, &lane);
	record->cgroup_id = bpf_get_current_cgroup_id();
	record->pid = task->tgid;
	record->cpu = lane;
	record->event = event;
	record->pad = 0;
	record->pad2 = 0;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task)
{
	return submit_process(task, PODWIRE_EXEC);
}

/* The last thread to go ends the process; two that go together may both say so. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	struct call_state *call = current_call();

	if (call && call->is_active)
		end_unseen(call);
	forget_call();
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	return submit_process(task, PODWIRE_EXIT);
}
