/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way into the rings. Every event ends in exactly one counter: submitted, ring_full, map_full,
 * unannounced or excluded. No wake-up: user space drains on a timer, because the wake-up, not the copy, is
 * what costs the traced call.
 */
#ifndef PODWIRE_RING_H
#define PODWIRE_RING_H

static __always_inline __u32 kind_of_event(__u8 event)
{
	if (event == PODWIRE_ANNOUNCED)
		return PODWIRE_KIND_CONNECTION;
	return event == PODWIRE_CLOSED ? PODWIRE_KIND_CLOSE : PODWIRE_KIND_OPEN;
}

/* Returns whether the ring took it. */
static __noinline bool submit_connection(struct podwire_connection_record *from)
{
	struct podwire_connection_record *record;
	__u32 lane;

	if (!from)
		return false;
	if (is_left_out(from->role, from->local_port, from->remote_port, from->pid)) {
		if (from->event != PODWIRE_ANNOUNCED)
			count(kind_of_event(from->event), excluded);
		return false;
	}
	record = bpf_ringbuf_reserve(&connections, sizeof(*record), 0);
	if (!record) {
		count(kind_of_event(from->event), ring_full);
		return false;
	}
	__builtin_memcpy(record, from, sizeof(*record));
	record->sequence = next_connection_sequence(&lane);
	record->cpu = lane;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	count(kind_of_event(from->event), submitted);
	return true;
}

/* Bytes of which no record can tell whose they are. */
static __always_inline void count_untold(bool is_left_out)
{
	if (is_left_out)
		count(PODWIRE_KIND_TRANSFER, excluded);
	else
		count(PODWIRE_KIND_TRANSFER, unannounced);
}

struct transfer {
	__u64 connection_id;
	__u64 duration_ns; /* or PODWIRE_UNMEASURED */
	__u64 end_ns;
	__u64 sk; /* the address of the sock, which need not be there any more */
	__u32 size;
	__u8 direction; /* enum podwire_direction */
	__u8 call;	/* enum podwire_call */
	__u16 pad;
	struct counted counted;
};

enum {
	/* So much waiting in a queue fits in no record; what is left then waits for the next call. */
	MAX_RECORDS = 8,
	/* How old figures of the direction that makes no calls may become: acknowledgements of a
	 * connection that only reads are written, too. */
	TOLD_EVERY_NS = 1000000000,
};

static __always_inline bool tells_anything(const struct podwire_transfer_record *record)
{
	__u32 found = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < PODWIRE_WRITE_FIGURES; i++)
		found |= record->figures[i];
	return found;
}

/* Returns 0 unless figures are left that did not fit. */
static __noinline __u64 submit_record(const struct transfer *from, struct flow *flow)
{
	__u32 key = PODWIRE_KIND_TRANSFER;
	__u64 pid_tid = bpf_get_current_pid_tgid();
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	struct podwire_transfer_record *record;
	__u64 rest;
	__u32 lane;

	if (!counted || !from)
		return 0;
	record = bpf_ringbuf_reserve(&transfers, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		return 0;
	}
	if (from->call == PODWIRE_CALL_NONE)
		pid_tid = 0; /* what is no call is no thread's either */
	record->connection_id = from->connection_id;
	record->end_ns = from->end_ns;
	record->duration_ns = from->duration_ns;
	record->size = from->size;
	record->pid = pid_tid >> 32;
	record->tid = (__u32)pid_tid;
	record->direction = from->direction;
	record->call = from->call;
	rest = fill_figures(record, flow, &from->counted);
	if (from->call == PODWIRE_CALL_NONE && !tells_anything(record)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP); /* a call has told it meanwhile */
		return 0;
	}
	record->sequence = count_submitted(counted, PODWIRE_KIND_TRANSFER, &lane);
	record->cpu = lane;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return rest;
}

/* Tell for which reasons a flow has lost packets. Those that the ring has no room for are told as
 * lost without a reason. */
static __noinline int tell_losses(__u64 connection_id, __u64 end_ns, __u64 sk, struct flow *flow)
{
	__u32 kind = PODWIRE_KIND_DROP, lane;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &kind);
	struct podwire_drop_record *record;
	struct loss_key key = {.sk = sk};
	struct loss *loss;
	__s64 packets;

	if (!counted || !flow)
		return 0;
	for (__u32 i = 0; i < MAX_REASONS; i++) {
		key.place = i;
		loss = bpf_map_lookup_elem(&losses, &key);
		if (!loss)
			break;
		packets = loss->packets;
		if (packets <= 0)
			continue;
		packets = at_most(packets);
		__sync_fetch_and_add(&loss->packets, -packets);
		__sync_fetch_and_add(&flow->explained, -packets);
		record = bpf_ringbuf_reserve(&drops, sizeof(*record), 0);
		if (!record) {
			__sync_fetch_and_add(&counted->ring_full, 1);
			__sync_fetch_and_add(&flow->write[PODWIRE_WRITE_LOST_PACKET_COUNT], packets);
			continue;
		}
		__builtin_memset(record, 0, sizeof(*record));
		record->connection_id = connection_id;
		record->end_ns = end_ns;
		record->sequence = count_submitted(counted, PODWIRE_KIND_DROP, &lane);
		record->packets = packets;
		record->reason = loss->reason;
		record->cpu = lane;
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

/* What follows in this transfer's place is no call. */
static __always_inline void become_rest(struct transfer *transfer)
{
	transfer->duration_ns = PODWIRE_UNMEASURED;
	transfer->size = 0;
	transfer->call = PODWIRE_CALL_NONE;
	__builtin_memset(&transfer->counted, 0, sizeof(transfer->counted));
}

static __noinline int submit_transfer(struct transfer *transfer)
{
	struct flow *flow = 0;
	__u64 *told_ns;
	__u64 rest;

	if (!transfer)
		return 0;
	if (podwire_stages)
		flow = find_flow(transfer->sk);
	if (flow && flow->explained > 0)
		tell_losses(transfer->connection_id, transfer->end_ns, transfer->sk, flow);
	rest = submit_record(transfer, flow);
	if (!flow)
		return 0;
	for (int i = 1; rest && i < MAX_RECORDS; i++) {
		become_rest(transfer);
		rest = submit_record(transfer, flow);
	}
	flow->told_ns[transfer->direction == PODWIRE_WRITE] = transfer->end_ns;
	transfer->direction = transfer->direction == PODWIRE_WRITE ? PODWIRE_READ : PODWIRE_WRITE;
	told_ns = &flow->told_ns[transfer->direction == PODWIRE_WRITE];
	if (*told_ns && transfer->end_ns - *told_ns < TOLD_EVERY_NS)
		return 0;
	if (*told_ns && has_figures(flow, transfer->direction)) {
		become_rest(transfer);
		submit_record(transfer, flow);
	}
	*told_ns = transfer->end_ns;
	return 0;
}

#endif
