/** What a request and an event may take. */

/** Longest `request_id` in UTF-16 code units. */
export const requestIdMax = 128
/** Longest `Nats-Msg-Id` in bytes: a unique index holds it, and an index row ends at about 2,700. */
export const messageIdMaxBytes = 1_024
/**
 * Larger messages are of no use, whatever `max_payload` allows: an entry must fit in one message of PostgreSQL (the client of the shards
 * is told this limit), and in memory several times over.
 */
export const payloadMax = 16 * 1024 * 1024
/** What of `max_payload` a page with one entry needs beside the log itself: names, numbers, the longest request id escaped, headers. */
export const pageOverheadBytes = 2_048

/** The largest page with `maxPayload`, in bytes. */
export const pageMaxBytes = (maxPayload: number): number => Math.min(maxPayload, payloadMax)

/** The longest log that fits in a page with `maxPayload`, in bytes of its JSON form in UTF-8, quotes included. */
export const logMaxBytes = (maxPayload: number): number => pageMaxBytes(maxPayload) - pageOverheadBytes

/** Bytes of a string's JSON form in UTF-8. */
export const jsonBytes = (text: string): number => Buffer.byteLength(JSON.stringify(text))
