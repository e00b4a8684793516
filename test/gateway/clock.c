/*
 * clock.c
 *		The gateway's clock (the machine's plus a settable error), its naps and its log.
 *
 * `stopping` and its condition, under `lock`, end every nap when the gateway ends.
 */
#include "settings.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t stopped = PTHREAD_COND_INITIALIZER;
static bool stopping;
static FILE *log_stream;

/* Milliseconds since the epoch, as this gateway sees them. */
int64_t
gw_clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000 + gw_settings.clock_skew_ms;
}

/* For intervals: never set, never skewed. */
int64_t
gw_clock_monotonic_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* "2021-08-26 09:13:22", in Hong Kong's time, which has known no summer since 1979. */
void
gw_clock_text(char *dst, size_t size)
{
	time_t		seconds = (time_t) (gw_clock_ms() / 1000) + 8 * 3600;
	struct tm	parts;

	gmtime_r(&seconds, &parts);
	strftime(dst, size, "%Y-%m-%d %H:%M:%S", &parts);
}

/* Waits; false when the gateway ends meanwhile. */
bool
gw_clock_sleep(int64_t ms)
{
	struct timespec until;
	bool		go_on;

	if (ms <= 0)
		return true;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000;
	if (until.tv_nsec >= 1000000000)
	{
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&lock);
	while (!stopping && pthread_cond_timedwait(&stopped, &lock, &until) == 0)
		;
	go_on = !stopping;
	pthread_mutex_unlock(&lock);
	return go_on;
}

void
gw_clock_stop(void)
{
	pthread_mutex_lock(&lock);
	stopping = true;
	pthread_cond_broadcast(&stopped);
	pthread_mutex_unlock(&lock);
}

/* Opens --log, or settles for stderr; false (errno set) when that fails. */
bool
gw_log_open(void)
{
	log_stream = stderr;
	if (gw_settings.log_file != NULL)
	{
		log_stream = fopen(gw_settings.log_file, "a");
		if (log_stream == NULL)
		{
			log_stream = stderr;
			return false;
		}
	}
	setvbuf(log_stream, NULL, _IOLBF, 0);
	return true;
}

/* One dated line.  Callers pass no personal data, keys or tokens. */
void
gw_log(const char *format,...)
{
	char		line[1024];
	char		date[32];
	va_list		args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	gw_clock_text(date, sizeof(date));
	fprintf(log_stream ? log_stream : stderr, "%s fini-gateway: %s\n", date, line);
}
