/** What the streams of deliveries of a worker ask for, in messages and bytes, and how long what they hold is theirs. */

/** Messages of a request: what two lanes take while more is on its way, and some batches of reads. */
export const appendsPull = 3_000
export const queriesPull = 512

/** Bytes of a request for what is new. */
export const intakeBytes = 8 * 1024 * 1024

/** The same of all requests for what was parked, of which each shard has two consumers, and the retries one. */
const parkedBytes = 16 * 1024 * 1024
export const parkedConsumers = (shards: number): number => 2 * shards + 1

/** The part of one of them. It takes the largest message, whatever is left for it. */
export const parkedShareBytes = (shards: number): number => Math.floor(parkedBytes / parkedConsumers(shards))

/** What the broker counts of a message beside its headers and its payload, and more: its subject, where it is acknowledged. */
const addressBytes = 4 * 1024

/** What a request may bring that takes the largest message, and so many bytes at least. */
export const requestBytes = (bytes: number, maxPayload: number): number => Math.max(bytes, maxPayload + addressBytes)

/** Delivered again after this long without ack, nak or `working`, in milliseconds. */
export const ackWaitMillis = 30_000
