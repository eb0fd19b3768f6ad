/**
 * A password as PostgreSQL stores it for SCRAM: prepared by SASLprep (RFC 4013), where it is not ASCII. The client library
 * sends it as it was given, which fails for a password that was typed on a machine with decomposed letters (é as two
 * characters), or that has a no-break space or a ligature.
 *
 * Left out are the checks of what SASLprep prohibits (control characters, unassigned ones, mixed directions). PostgreSQL
 * takes such a password as it is, so whoever logs in tries the given one as well: see `connectTo`.
 */

/** RFC 3454, table C.1.2: spaces that become a plain one. PostgreSQL looks here first. */
const spaces = /[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g

/** Table B.1: characters that become nothing. */
const nothing = /\u00ad|\u034f|\u1806|[\u180b-\u180d]|\u200c|\u200d|\u2060|[\ufe00-\ufe0f]|\ufeff/g

export const saslprep = (password: string): string =>
  password.replace(spaces, " ").replace(nothing, "").normalize("NFKC")
