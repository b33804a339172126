/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The core's side of flows.h: the life of a flow, and the way of its figures into a record. */
#ifndef PODWIRE_FIGURES_H
#define PODWIRE_FIGURES_H

/* Set by user space before loading: whether anything fills the flows. */
const volatile __u32 podwire_stages = 0;

static const struct flow new_flow = {};

static __always_inline void forget_losses(__u64 sk)
{
	struct loss_key key = {.sk = sk};

	for (__u32 i = 0; i < MAX_REASONS; i++) {
		key.place = i;
		if (bpf_map_delete_elem(&losses, &key))
			break;
	}
}

static __always_inline void begin_flow(struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (!podwire_stages)
		return;
	/* A packet of the last sock at this address may have been lost while that one ended. */
	if (!bpf_map_update_elem(&flows, &key, &new_flow, BPF_NOEXIST))
		forget_losses(key);
}

static __always_inline void end_flow(struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (!podwire_stages)
		return;
	bpf_map_delete_elem(&flows, &key);
	forget_losses(key);
}

/* When the first of the bytes came that the call under way has read; 0 if that is not known. */
static __always_inline __u64 arrival_by_task(void)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct task_stages *slot;

	if (!podwire_stages)
		return 0;
	slot = slot_of_task(tid);
	return slot && slot->tid == tid && slot->first_copy_ns ? slot->arrived_ns : 0;
}

static __always_inline bool has_received_fin(struct sock *sk)
{
	return READ_SOCK(sk, __sk_common.skc_flags) >> SOCK_DONE & 1;
}

/* What the sock has counted before we look at it for the first time is not ours to tell. */
static __always_inline void skip_counters(struct sock *sk, struct socket_state *st)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	st->told.packets_in = BPF_CORE_READ(tp, data_segs_in);
	st->told.packets_out = BPF_CORE_READ(tp, data_segs_out);
	st->told.retransmits = BPF_CORE_READ(tp, total_retrans);
	st->told.bytes_in = BPF_CORE_READ(tp, bytes_received) - has_received_fin(sk);
	st->told.bytes_out = BPF_CORE_READ(tp, bytes_sent);
}

static __always_inline __u32 at_most(__u64 value)
{
	return value > FIGURE_MAX ? FIGURE_MAX : value;
}

/*
 * What a sock has counted since it was last told. RFC 4898 calls two of the counters
 * tcpEStatsPerfDataSegsIn and -Out; all of them know GSO, GRO and retransmissions.
 */
static __always_inline void take_counters(struct sock *sk, struct socket_state *st, __u8 direction,
					  struct counted *to)
{
	struct tcp_sock *tp = tcp_sock_of(sk);
	struct told *told = &st->told;

	if (direction == PODWIRE_WRITE) {
		to->packets += take_32(&told->packets_out, READ_TCP(tp, data_segs_out));
		to->packet_bytes += take_64(&told->bytes_out, READ_TCP(tp, bytes_sent));
		to->retransmits += take_32(&told->retransmits, READ_TCP(tp, total_retrans));
	} else {
		/* tcp_rcv_nxt_update() counts the FIN as a byte; tcp_fin() says SOCK_DONE. */
		to->packets += take_32(&told->packets_in, READ_TCP(tp, data_segs_in));
		to->packet_bytes += take_64(&told->bytes_in, READ_TCP(tp, bytes_received) -
								     has_received_fin(sk));
	}
	to->is_known = 1;
}

/* Take what fits in a record; `rest` is not 0 where that is not all. It is no truth value, because
 * the verifier would follow each of its two values on their own. */
#define take_figure(record, from, place, rest)                                                     \
	do {                                                                                       \
		__s64 value_ = (from)[place];                                                      \
		if (value_ > 0) {                                                                  \
			(rest) |= (__u64)value_ >> 32;                                             \
			value_ = at_most(value_);                                                  \
			__sync_fetch_and_add(&(from)[place], -value_);                             \
			(record)->figures[place] = value_;                                         \
		}                                                                                  \
	} while (0)

/* Of a call, the part that the stages of its own thread explain. */
static __always_inline void fill_call(struct podwire_transfer_record *record, __u64 start_ns)
{
	struct task_stages *slot = slot_of_task(record->tid);
	bool is_write = record->direction == PODWIRE_WRITE;
	__u64 call_ns = PODWIRE_UNMEASURED, first_ns;

	if (slot && slot->tid == record->tid) {
		first_ns = is_write ? slot->first_send_ns : slot->first_copy_ns;
		if (first_ns && first_ns >= start_ns)
			call_ns = is_write ? slot->sent_ns : record->end_ns - first_ns;
		if (is_write) {
			slot->sent_ns = 0;
			slot->first_send_ns = 0;
		} else {
			slot->first_copy_ns = 0;
		}
	}
	if (record->duration_ns == PODWIRE_UNMEASURED || call_ns > record->duration_ns) {
		if (is_write) {
			record->figures[PODWIRE_WRITE_UNATTRIBUTED_DURATION] = ~0U;
		} else {
			record->figures[PODWIRE_READ_CALL_DURATION] = ~0U;
			record->figures[PODWIRE_READ_UNATTRIBUTED_DURATION] = ~0U;
		}
	} else if (is_write) {
		record->figures[PODWIRE_WRITE_UNATTRIBUTED_DURATION] =
			at_most(record->duration_ns - call_ns);
	} else {
		record->figures[PODWIRE_READ_CALL_DURATION] = at_most(call_ns);
		record->figures[PODWIRE_READ_UNATTRIBUTED_DURATION] =
			at_most(record->duration_ns - call_ns);
	}
}

/*
 * Everything of `figures` and `measured`; the rest of the record is there already. `flow` may be
 * NULL. Returns 0 if everything fitted.
 */
static __always_inline __u64 fill_figures(struct podwire_transfer_record *record,
					  struct flow *flow, const struct counted *counted)
{
	__u64 rest = 0;

	record->measured = 0;
	__builtin_memset(record->figures, 0, sizeof(record->figures));
	if (counted->is_known) {
		record->measured = PODWIRE_MEASURED_COUNTERS;
		record->figures[PODWIRE_READ_PACKET_COUNT] = counted->packets;
		record->figures[PODWIRE_READ_PACKET_SIZE] = at_most(counted->packet_bytes);
		if (record->direction == PODWIRE_WRITE)
			record->figures[PODWIRE_WRITE_RETRANSMIT_PACKET_COUNT] =
				counted->retransmits;
	}
	if (!flow)
		return 0;
	record->measured |= PODWIRE_MEASURED_STAGES;
	if (record->direction == PODWIRE_WRITE) {
#pragma clang loop unroll(full)
		for (int i = PODWIRE_WRITE_LOST_PACKET_COUNT;
		     i < PODWIRE_WRITE_UNATTRIBUTED_DURATION; i++)
			take_figure(record, flow->write, i, rest);
	} else {
#pragma clang loop unroll(full)
		for (int i = PODWIRE_READ_L4_DURATION; i < PODWIRE_READ_CALL_DURATION; i++)
			take_figure(record, flow->read, i, rest);
	}
	if (record->call != PODWIRE_CALL_NONE)
		fill_call(record, record->end_ns - record->duration_ns);
	return rest;
}

/* Whether a direction has something that no record has told. */
static __always_inline bool has_figures(const struct flow *flow, __u8 direction)
{
	__u64 found = 0;

	if (direction == PODWIRE_WRITE) {
#pragma clang loop unroll(full)
		for (int i = PODWIRE_WRITE_LOST_PACKET_COUNT;
		     i < PODWIRE_WRITE_UNATTRIBUTED_DURATION; i++)
			found |= flow->write[i];
	} else {
#pragma clang loop unroll(full)
		for (int i = PODWIRE_READ_L4_DURATION; i < PODWIRE_READ_CALL_DURATION; i++)
			found |= flow->read[i];
	}
	return found;
}

#endif
