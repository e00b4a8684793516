/*
 * cppcheck.h
 *		What cppcheck, which does not read the headers of others, has to know of them.
 */
#define ERROR 21
#define FATAL 22
#define PANIC 23
#define ereport(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define elog(elevel, ...) do { if ((elevel) >= ERROR) abort(); } while (0)
#define json_array_foreach(array, i, value) \
	for ((i) = 0; (i) < json_array_size(array) && ((value) = json_array_get(array, i)) != NULL; (i)++)
#define json_object_foreach(object, key, value) \
	for ((key) = first_key(object); (key) != NULL && ((value) = json_object_get(object, key)) != NULL; (key) = next_key(object, key))
#define json_object_foreach_safe(object, next, key, value) json_object_foreach(object, key, value)
