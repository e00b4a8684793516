/*
 * http_headers.c
 *		The fuzz target for what libcurl hands over of an answer: its header
 *		lines and its body, piece by piece.
 *
 * Takes the place of http_transfer.c in the build, since the callbacks are
 * static there.
 */
#include "../../src/http_transfer.c"

#include "fuzz.h"

void
fuzz_http_headers(const char *data, Size len)
{
	FiniTransfer transfer = {0};
	const char *at = data;
	const char *end = data + len;
	Size		body = 0;

	transfer.max = 1 + len / 2;
	transfer.retry_after = -1;
	while (at < end)
	{
		const char *line = memchr(at, '\n', end - at);
		Size		n = line != NULL ? (Size) (line - at) + 1 : (Size) (end - at);
		char	   *piece = malloc(n);

		memcpy(piece, at, n);
		if (read_header(piece, 1, n, &transfer) != n)
			must(transfer.too_large);
		if (write_body(piece, 1, n, &transfer) == n)
			body += n;
		else
			must(transfer.too_large);
		free(piece);
		at += n;
	}
	must(transfer.retry_after >= -1 && transfer.retry_after <= MAX_RETRY_AFTER);
	must(transfer.len <= transfer.max);
	must(transfer.too_large || transfer.len == body);
	free(transfer.data);
}
