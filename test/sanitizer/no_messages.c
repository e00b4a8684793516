/*
 * no_messages.c
 *		Message catalogs switched off, preloaded beside a sanitizer's runtime.
 *
 * Where the runtime is preloaded into a program that was not built for it, the
 * constructors of some libraries leave glibc's lock of the message catalogs
 * unbalanced, and the program's first call of bindtextdomain hangs.
 */
#include <stddef.h>

char *bindtextdomain(const char *d, const char *p) { return (char *) p; }
char *bind_textdomain_codeset(const char *d, const char *c) { return (char *) c; }
char *textdomain(const char *d) { return (char *) d; }
char *gettext(const char *m) { return (char *) m; }
char *dgettext(const char *d, const char *m) { return (char *) m; }
char *dcgettext(const char *d, const char *m, int c) { return (char *) m; }
char *ngettext(const char *s, const char *p, unsigned long n) { return (char *) (n == 1 ? s : p); }
char *dngettext(const char *d, const char *s, const char *p, unsigned long n) { return (char *) (n == 1 ? s : p); }
