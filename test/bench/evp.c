/*
 * evp FILE BATCH SECONDS
 *		The floor of sealing: a bare loop of OpenSSL's EVP calls that encrypts and
 *		base64-encodes the personal fields of application records.
 *
 * FILE holds records, each a line "N" (how many fields follow) and then, for
 * each field, its length in decimal, a space, its bytes and a line feed.  The
 * data key is set once per BATCH records and the IV for each field, as
 * the protocol has it.  Runs for about SECONDS over whole passes of the file
 * and prints "records fields bytes seconds-of-CPU".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>
#include <openssl/rand.h>

#define KEY_LEN		32
#define IV_LEN		12
#define TAG_LEN		16

typedef struct Field
{
	const unsigned char *data;
	int			len;
} Field;

typedef struct Record
{
	Field	   *fields;
	int			n;
} Record;

static Record *records;
static long record_count;
static int	longest;

static void load(const char *path);
static void fail(const char *what);
static double cpu_seconds(void);
static void encrypt(EVP_CIPHER_CTX *ctx, const unsigned char *iv, const Field *field,
					unsigned char *sealed, unsigned char *text);

int
main(int argc, char **argv)
{
	EVP_CIPHER *aes = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	unsigned char key[KEY_LEN];
	unsigned char iv[IV_LEN];
	unsigned char *sealed;
	unsigned char *text;
	long		batch;
	double		limit;
	double		start;
	long		done = 0;
	long		fields = 0;
	long		bytes = 0;

	if (argc != 4)
	{
		fprintf(stderr, "usage: evp FILE BATCH SECONDS\n");
		return 2;
	}
	batch = atol(argv[2]);
	limit = atof(argv[3]);
	if (aes == NULL || ctx == NULL || batch < 1)
		fail("set-up");
	load(argv[1]);
	sealed = malloc((size_t) longest + TAG_LEN);
	text = malloc(((size_t) longest + TAG_LEN + 2) / 3 * 4 + 1);
	if (sealed == NULL || text == NULL)
		fail("malloc");

	start = cpu_seconds();
	do
	{
		for (long i = 0; i < record_count; i++)
		{
			if (i % batch == 0 &&
				(RAND_bytes(key, KEY_LEN) != 1 || RAND_bytes(iv, IV_LEN) != 1 ||
				 EVP_EncryptInit_ex2(ctx, aes, key, iv, NULL) != 1))
				fail("key");
			for (int f = 0; f < records[i].n; f++)
			{
				encrypt(ctx, iv, &records[i].fields[f], sealed, text);
				bytes += records[i].fields[f].len;
			}
			fields += records[i].n;
		}
		done += record_count;
	} while (cpu_seconds() - start < limit);
	printf("%ld %ld %ld %.6f\n", done, fields, bytes, cpu_seconds() - start);
	return 0;
}

static void
encrypt(EVP_CIPHER_CTX *ctx, const unsigned char *iv, const Field *field,
		unsigned char *sealed, unsigned char *text)
{
	int			len = 0;
	int			last = 0;

	if (EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL) != 1 ||
		EVP_EncryptUpdate(ctx, sealed, &len, field->data, field->len) != 1 ||
		EVP_EncryptFinal_ex(ctx, sealed + len, &last) != 1 ||
		EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_LEN, sealed + len + last) != 1)
		fail("encryption");
	(void) EVP_EncodeBlock(text, sealed, len + last + TAG_LEN);
}

static void
load(const char *path)
{
	FILE	   *file = fopen(path, "rb");
	long		room = 0;
	int			n;

	if (file == NULL)
		fail(path);
	while (fscanf(file, "%d", &n) == 1)
	{
		Record	   *record;

		if (record_count == room)
		{
			room = room ? room * 2 : 1024;
			records = realloc(records, sizeof(Record) * (size_t) room);
			if (records == NULL)
				fail("malloc");
		}
		record = &records[record_count++];
		record->n = n;
		record->fields = malloc(sizeof(Field) * (size_t) (n > 0 ? n : 1));
		if (record->fields == NULL)
			fail("malloc");
		for (int f = 0; f < n; f++)
		{
			unsigned char *data = NULL;
			int			len;

			if (fscanf(file, "%d", &len) != 1 || len < 0 || fgetc(file) != ' ' ||
				(data = malloc((size_t) len + 1)) == NULL || fread(data, 1, (size_t) len, file) != (size_t) len)
				fail("a field");
			record->fields[f].data = data;
			record->fields[f].len = len;
			if (len > longest)
				longest = len;
		}
	}
	fclose(file);
	if (record_count == 0)
		fail("no records");
}

static double
cpu_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

static void
fail(const char *what)
{
	fprintf(stderr, "evp: %s failed\n", what);
	exit(1);
}
