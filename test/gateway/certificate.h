/*
 * certificate.h
 *		A self-signed certificate for localhost, for whoever has none.
 */
#ifndef GW_CERTIFICATE_H
#define GW_CERTIFICATE_H

#include "text.h"

extern bool gw_certificate_make(Buf *certificate, Buf *key);

#endif
