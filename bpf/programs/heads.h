/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the first bytes of a message look like, and how much of it is copied. */

enum {
	HEAD_BYTES = 16,  /* what a decision is made from */
	SOME_BYTES = 8192, /* of a call when the ring is crowded */
	FEW_BYTES = 1024, /* of a call when it is nearly full */
	MAX_LOOKS = 200,  /* at an older connection */
	MAX_FRAME = 1 << 20,
	DATA_FRAME = 0,
};

static __always_inline bool is_upper(__u8 letter)
{
	return (letter >= 'A' && letter <= 'Z') || letter == '-' || letter == '_';
}

/*
 * METHOD SP and what a target may begin with (RFC 9112 section 3), the preface of HTTP/2 among them
 * (RFC 9113 section 3.4: PRI * HTTP/2.0), or as much of it as there is.
 */
static __always_inline bool is_request(const __u8 *head, __u32 size)
{
	__u8 after;

	for (__u32 i = 0; i < HEAD_BYTES - 1; i++) {
		if (is_upper(head[i]))
			continue;
		if (i >= size)
			return true;
		if (head[i] != ' ' || i < 2)
			return false;
		after = head[i + 1];
		return i + 1 >= size || after == '/' || after == '*' || after == 'h' ||
		       after == 'H' || (head[0] == 'C' && head[1] == 'O' && head[2] == 'N');
	}
	return false;
}

/* "HTTP/1.", "PROXY " or the signature of its second version, empty lines before a request. */
static __always_inline bool is_other_beginning(const __u8 *head, __u32 size)
{
	static const char answer[] = "HTTP/1.", proxy[] = "PROXY ";
	bool is_answer = true, is_proxy = true;

	for (__u32 i = 0; i < sizeof(answer) - 1; i++)
		if (i < size && head[i] != answer[i])
			is_answer = false;
	for (__u32 i = 0; i < sizeof(proxy) - 1; i++)
		if (i < size && head[i] != proxy[i])
			is_proxy = false;
	return is_answer || is_proxy || (size >= 2 && head[0] == '\r' && head[1] == '\n');
}

static __always_inline __u32 frame_length(const __u8 *head)
{
	return (__u32)head[0] << 16 | (__u32)head[1] << 8 | head[2];
}

/* A frame that may come first, by all that RFC 9113 section 6 says of its header. */
static __always_inline bool is_frame(const __u8 *head, __u32 size)
{
	__u32 length = frame_length(head);
	__u32 stream = (__u32)head[5] << 24 | (__u32)head[6] << 16 | (__u32)head[7] << 8 | head[8];
	__u8 flags = head[4];

	if (size < FRAME_HEADER || length > MAX_FRAME || stream >> 31)
		return false;
	switch (head[3]) {
	case DATA_FRAME:
		return stream && !(flags & ~0x09);
	case 1: /* HEADERS */
		return stream && length && !(flags & ~0x2d);
	case 2: /* PRIORITY */
		return stream && length == 5;
	case 3: /* RST_STREAM */
		return stream && length == 4;
	case 4: /* SETTINGS */
		return !stream && length % 6 == 0 && !(flags & ~0x01);
	case 6: /* PING */
		return !stream && length == 8 && !(flags & ~0x01);
	case 7: /* GOAWAY */
		return !stream && length >= 8;
	case 8: /* WINDOW_UPDATE */
		return length == 4;
	default:
		return false;
	}
}

/* What a client says first (RFC 9113 section 3.4); no method is "PRI". */
static __always_inline bool is_preface(const __u8 *head, __u32 size)
{
	return size > 5 && head[0] == 'P' && head[1] == 'R' && head[2] == 'I' && head[3] == ' ' &&
	       head[4] == '*' && head[5] == ' ';
}

/* What a side of HTTP may begin a message with; `head` has HEAD_BYTES. */
static __always_inline bool is_beginning(const __u8 *head, __u32 size)
{
	return is_request(head, size) || is_other_beginning(head, size) || is_frame(head, size);
}

static __always_inline bool is_filled(__u32 sixteenths)
{
	return bpf_ringbuf_query(&payloads, BPF_RB_AVAIL_DATA) >
	       bpf_ringbuf_query(&payloads, BPF_RB_RING_SIZE) / 16 * sixteenths;
}

/*
 * Bodies must not crowd out heads: from half of the ring on, only the beginning of a call is copied.
 * What is left out of a body of known length is not missed.
 */
static __always_inline __u32 most_bytes(void)
{
	return is_filled(12) ? FEW_BYTES : is_filled(8) ? SOME_BYTES : 0xffffffff;
}

/* The rest is for what is told at the end of connections that lost something. */
static __always_inline bool is_full(void)
{
	return is_filled(15);
}
