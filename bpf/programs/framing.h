/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The frames of HTTP/2 (RFC 9113 section 4.1), followed from header to header through the calls of a
 * direction, so that content is not copied: the parsers need no more of it than its length. One that
 * was lost sight of is found again where a call begins with a frame; until then everything is copied.
 */

enum {
	MAX_EXTENSION = 1 << 14,
	PREFACE_SIZE = 24,
	LEAST_CONTENT = 2048, /* less costs less to copy than to tell apart */
	LEAST_CROWDED = 64,
	PADDED_FLAG = 0x08,
};

/* A frame that may follow another. */
static __always_inline bool is_next_frame(const __u8 *head)
{
	switch (head[3]) {
	case 5: /* PUSH_PROMISE */
	case 9: /* CONTINUATION */
		return frame_length(head) <= MAX_FRAME;
	case 0x0a: /* ALTSVC, RFC 7838 */
	case 0x0c: /* ORIGIN, RFC 8336 */
	case 0x10: /* PRIORITY_UPDATE, RFC 9218 */
		return frame_length(head) <= MAX_EXTENSION;
	default:
		return is_frame(head, FRAME_HEADER);
	}
}

/* Be ready for the frames of a call; false where it is not known where they lie. */
static __noinline int follow_frames(struct call_state *call, struct framing *framing, __u32 position)
{
	__u8 head[FRAME_HEADER] = {};
	struct buffers from;

	if (!call || !framing)
		return 0;
	if (framing->is_followed && framing->position == position)
		return 1;
	framing->is_followed = 0;
	framing->left = framing->have = framing->is_body = 0;
	if (!find_buffers(&from, call) || !next_buffer(&from) || from.now.length < FRAME_HEADER ||
	    bpf_probe_read_user(head, FRAME_HEADER, (void *)from.now.base))
		return 0;
	if (is_preface(head, FRAME_HEADER))
		framing->left = PREFACE_SIZE;
	else if (!is_frame(head, FRAME_HEADER))
		return 0;
	framing->is_followed = 1;
	return 1;
}

/* Take what `length` bytes of the buffer under way have of a header; returns how many, 0 on failure. */
static __always_inline __u32 take_header(struct copying *of, __u32 length)
{
	struct framing *framing = &of->framing;
	__u32 have = at_most_mask(framing->have, 15);
	__u32 taken = FRAME_HEADER - have;

	if (have >= FRAME_HEADER)
		return 0;
	if (taken > length)
		taken = length;
	taken = at_most_mask(taken, 15);
	framing->is_body = 0;
	if (bpf_probe_read_user(&framing->header[have], taken, (void *)of->from.now.base))
		return 0;
	have += taken;
	framing->have = have;
	if (have < FRAME_HEADER)
		return taken;
	framing->have = 0;
	if (!is_next_frame(framing->header)) {
		framing->is_followed = 0;
		return taken;
	}
	framing->left = frame_length(framing->header);
	framing->is_body = framing->header[3] == DATA_FRAME &&
			   !(framing->header[4] & PADDED_FLAG) && framing->left >= of->least;
	return taken;
}
