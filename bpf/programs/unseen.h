/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Bytes that the ring had no room for. What follows them in their direction shows how many there
 * were, by its position. But the other side may go on sooner, and whose answer that is can only be
 * told by who knows what is missing since when: so they are told of before whatever is said next.
 */

/* An empty record: its direction has come that far. */
static __always_inline bool tell_position(const struct unseen *unseen, __u64 connection_id,
					  bool is_write, __u8 flags)
{
	__u32 key = PODWIRE_KIND_PAYLOAD, lane;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	struct podwire_payload_record *record;

	if (!counted)
		return false;
	record = bpf_ringbuf_reserve(&payloads, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		return false;
	}
	record->connection_id = connection_id;
	record->start_ns = record->end_ns = unseen->end_ns;
	record->position = unseen->position;
	record->size = record->captured = 0;
	record->direction = is_write ? PODWIRE_WRITE : PODWIRE_READ;
	record->flags = flags;
	record->sequence = next_payload_sequence(&lane);
	record->cpu = lane;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	__sync_fetch_and_add(&counted->submitted, 1);
	return true;
}

static __always_inline void tell_one(struct unseen *unseen, __u64 connection_id, bool is_write,
				     __u8 flags)
{
	if (!unseen->is_untold)
		return;
	/* Cleared first: what another task loses meanwhile is not forgotten. */
	unseen->is_untold = 0;
	if (!tell_position(unseen, connection_id, is_write, flags))
		unseen->is_untold = 1;
}

/* Tell what both directions have lost, in the order in which they did. */
static __noinline int tell_unseen(struct unseen *unseen, __u64 connection_id, __u8 flags)
{
	bool is_write;

	if (!unseen)
		return 0;
	is_write = unseen[1].is_untold && unseen[1].end_ns < unseen[0].end_ns;
	tell_one(&unseen[is_write], connection_id, is_write, flags);
	tell_one(&unseen[!is_write], connection_id, !is_write, flags);
	return 0;
}

/* The same before bytes that are about to be told, if there will be room for these. */
static __always_inline void tell_unseen_before(struct unseen *unseen, __u64 connection_id,
					       __u8 flags)
{
	if ((unseen[0].is_untold || unseen[1].is_untold) && !is_full())
		tell_unseen(unseen, connection_id, flags);
}

static __always_inline void note_unseen(struct unseen *unseen, bool is_untold, __u32 position,
					__u64 end_ns)
{
	if (is_untold) {
		unseen->position = position;
		unseen->end_ns = end_ns;
	}
	unseen->is_untold = is_untold;
}
