/*
 * failing.c
 *		A library to preload into a server, which makes the n-th call of a family of functions fail.
 *
 * Families: malloc and its kin, by whomever they are called; functions of OpenSSL (as called by fini, libcurl and
 * libssl); functions of libcurl. What fails does so as its manual says: NULL with ENOMEM, NULL or 0, a code. What is to fail,
 * and in which process, stands in memory that the postmaster shares with its children; SQL functions in heap.c set it
 * and read how far it came. Calls are counted in that one process only, and nothing fails in any other.
 *
 * Linux, and calling conventions that pass the arguments of variadic functions as those of others.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "failing.h"

FailControl *fini_fail_control;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);

__attribute__((constructor)) static void
make_control(void)
{
	void	   *at = mmap(NULL, sizeof(FailControl), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at != MAP_FAILED)
		fini_fail_control = at;
}

static bool
fails(int family, const char *name)
{
	FailControl *control = fini_fail_control;
	int64_t		n;

	if (control == NULL || control->family != family || control->pid != (int32_t) getpid())
		return false;
	n = ++control->count;
	if (control->nth == 0 || n < control->nth || (n > control->nth && !control->all_after))
		return false;
	control->failed++;
	strncpy(control->name, name, sizeof(control->name) - 1);
	return true;
}

void *
malloc(size_t size)
{
	if (fails(FAIL_MALLOC, "malloc"))
	{
		errno = ENOMEM;
		return NULL;
	}
	return __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
	if (fails(FAIL_MALLOC, "calloc"))
	{
		errno = ENOMEM;
		return NULL;
	}
	return __libc_calloc(n, size);
}

void *
realloc(void *old, size_t size)
{
	if (fails(FAIL_MALLOC, "realloc"))
	{
		errno = ENOMEM;
		return NULL;
	}
	return __libc_realloc(old, size);
}

static void *
next(const char *name)
{
	void	   *found = dlsym(RTLD_NEXT, name);

	if (found == NULL)
		abort();
	return found;
}

/* none of them takes more than eight arguments, and all of those are pointers or integers */
#define WRAP(family, type, failure, name) \
	type name(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h); \
	type \
	name(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h) \
	{ \
		static type (*real) (void *, void *, void *, void *, void *, void *, void *, void *); \
		if (real == NULL) \
			real = (type (*) (void *, void *, void *, void *, void *, void *, void *, void *)) next(#name); \
		if (fails(family, #name)) \
			return failure; \
		return real(a, b, c, d, e, f, g, h); \
	}

/* objects: NULL */
WRAP(FAIL_CRYPTO, void *, NULL, EVP_CIPHER_fetch)
WRAP(FAIL_CRYPTO, void *, NULL, EVP_CIPHER_CTX_new)
WRAP(FAIL_CRYPTO, void *, NULL, EVP_MAC_fetch)
WRAP(FAIL_CRYPTO, void *, NULL, EVP_MAC_CTX_new)
WRAP(FAIL_CRYPTO, void *, NULL, EVP_MD_CTX_new)
WRAP(FAIL_CRYPTO, void *, NULL, EVP_PKEY_CTX_new_from_pkey)
WRAP(FAIL_CRYPTO, void *, NULL, BIO_new_mem_buf)
WRAP(FAIL_CRYPTO, void *, NULL, PEM_read_bio_PrivateKey)
WRAP(FAIL_CRYPTO, void *, NULL, PEM_read_bio_X509)
WRAP(FAIL_CRYPTO, void *, NULL, d2i_PUBKEY)

/* states: 0 */
WRAP(FAIL_CRYPTO, int, 0, EVP_CIPHER_CTX_ctrl)
WRAP(FAIL_CRYPTO, int, 0, EVP_CipherInit_ex2)
WRAP(FAIL_CRYPTO, int, 0, EVP_DecryptFinal_ex)
WRAP(FAIL_CRYPTO, int, 0, EVP_DecryptInit_ex2)
WRAP(FAIL_CRYPTO, int, 0, EVP_DecryptUpdate)
WRAP(FAIL_CRYPTO, int, 0, EVP_Digest)
WRAP(FAIL_CRYPTO, int, 0, EVP_DigestFinal_ex)
WRAP(FAIL_CRYPTO, int, 0, EVP_DigestInit_ex)
WRAP(FAIL_CRYPTO, int, 0, EVP_DigestSign)
WRAP(FAIL_CRYPTO, int, 0, EVP_DigestSignInit_ex)
WRAP(FAIL_CRYPTO, int, 0, EVP_DigestUpdate)
WRAP(FAIL_CRYPTO, int, 0, EVP_EncryptFinal_ex)
WRAP(FAIL_CRYPTO, int, 0, EVP_EncryptInit_ex2)
WRAP(FAIL_CRYPTO, int, 0, EVP_EncryptUpdate)
WRAP(FAIL_CRYPTO, int, 0, EVP_MAC_final)
WRAP(FAIL_CRYPTO, int, 0, EVP_MAC_init)
WRAP(FAIL_CRYPTO, int, 0, EVP_MAC_update)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_CTX_set_rsa_padding)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_encrypt)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_encrypt_init)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_eq)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_get_bits)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_get_bn_param)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_get_size)
WRAP(FAIL_CRYPTO, int, 0, EVP_PKEY_is_a)
WRAP(FAIL_CRYPTO, int, 0, RAND_priv_bytes)
WRAP(FAIL_CRYPTO, int, 0, X509_check_private_key)
WRAP(FAIL_CRYPTO, int, 0, ASN1_TIME_to_tm)

/*
 * libcurl, which may call these itself. Not curl_multi_remove_handle: curl_easy_cleanup relies on it.
 * 27: CURLE_OUT_OF_MEMORY, 43: CURLE_BAD_FUNCTION_ARGUMENT, 3: CURLM_OUT_OF_MEMORY, 7: CURLUE_OUT_OF_MEMORY
 */
WRAP(FAIL_CURL, void *, NULL, curl_easy_init)
WRAP(FAIL_CURL, int, 27, curl_easy_setopt)
WRAP(FAIL_CURL, int, 43, curl_easy_getinfo)
WRAP(FAIL_CURL, void *, NULL, curl_multi_init)
WRAP(FAIL_CURL, int, 3, curl_multi_setopt)
WRAP(FAIL_CURL, int, 3, curl_multi_add_handle)
WRAP(FAIL_CURL, int, 3, curl_multi_socket_action)
WRAP(FAIL_CURL, void *, NULL, curl_slist_append)
WRAP(FAIL_CURL, void *, NULL, curl_url)
WRAP(FAIL_CURL, int, 7, curl_url_get)
WRAP(FAIL_CURL, int, 7, curl_url_set)
