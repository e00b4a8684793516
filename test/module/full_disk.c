/*
 * full_disk.c
 *		To be preloaded (LD_PRELOAD): a full disk, as long as the file that
 *		FINI_FULL_DISK names is there.
 *
 * What that file holds is part of the paths concerned.  Their files do not
 * grow; what is inside them can be written.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static bool
is_full(int fd, off_t end)
{
	const char *flag = getenv("FINI_FULL_DISK");
	char		part[512] = "";
	char		link[64];
	char		path[1024];
	struct stat st;
	ssize_t		len;
	FILE	   *file;

	if (flag == NULL || access(flag, R_OK) != 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || end <= st.st_size)
		return false;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	if (len < 0 || (file = fopen(flag, "r")) == NULL)
		return false;
	path[len] = '\0';
	if (fgets(part, sizeof(part), file) == NULL)
		part[0] = '\0';
	fclose(file);
	part[strcspn(part, "\n")] = '\0';
	return part[0] != '\0' && strstr(path, part) != NULL;
}

#define REAL(name) \
	do { if (real == NULL) *(void **) &real = dlsym(RTLD_NEXT, name); } while (0)
#define REFUSE_IF_FULL(fd, end) \
	do { if (is_full(fd, end)) { errno = ENOSPC; return -1; } } while (0)

ssize_t
pwrite(int fd, const void *data, size_t size, off_t offset)
{
	static ssize_t (*real) (int, const void *, size_t, off_t);

	REAL("pwrite");
	REFUSE_IF_FULL(fd, offset + (off_t) size);
	return real(fd, data, size, offset);
}

ssize_t
pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	return pwrite(fd, data, size, offset);
}

ssize_t
pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
	static ssize_t (*real) (int, const struct iovec *, int, off_t);
	off_t		end = offset;

	REAL("pwritev");
	for (int i = 0; i < n; i++)
		end += (off_t) iov[i].iov_len;
	REFUSE_IF_FULL(fd, end);
	return real(fd, iov, n, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *iov, int n, off64_t offset)
{
	return pwritev(fd, iov, n, offset);
}

int
posix_fallocate(int fd, off_t offset, off_t len)
{
	static int	(*real) (int, off_t, off_t);

	REAL("posix_fallocate");
	if (is_full(fd, offset + len))
		return ENOSPC;
	return real(fd, offset, len);
}

int
posix_fallocate64(int fd, off64_t offset, off64_t len)
{
	return posix_fallocate(fd, offset, len);
}
