/*
 * slow_names.c
 *		To be preloaded (LD_PRELOAD): looking up a name that starts with
 *		"slow." takes as long as a dead name server makes it take.
 *
 * The thread that looks it up must not get signals meant for the server
 * process; should it be able to, it says so on standard error.
 */
#include <dlfcn.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res)
{
	static int	(*real) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (node != NULL && strncmp(node, "slow.", 5) == 0)
	{
		sigset_t	mask;

		sigemptyset(&mask);
		pthread_sigmask(SIG_SETMASK, NULL, &mask);
		if (!sigismember(&mask, SIGTERM) || !sigismember(&mask, SIGUSR1) || !sigismember(&mask, SIGALRM))
			fprintf(stderr, "signals reach the resolver's thread\n");
		fprintf(stderr, "looking up a slow name\n");
		sleep(60);
		return EAI_AGAIN;
	}
	return real(node, service, hints, res);
}
