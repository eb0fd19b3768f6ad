/** Every bound of the pipelines, with its unit and its reason. */
import { Schedule } from "effect"

/**
 * Most entries in one append transaction, and how many wait in a lane, so that the next batch is there when one ends. Larger
 * batches are faster still, but cost memory, and delay their first event.
 */
export const batchEntriesMax = 2_000

/**
 * The same after a transaction of so many entries that took so long. Where a batch of the ordinary size takes more than a
 * tenth of a second it waits for other workers or for the disk, and a larger one is hardly later.
 */
export const batchEntries = (entries: number, millis: number): number =>
  millis > slowMillis * Math.max(1, entries / batchEntriesMax) ? 2 * batchEntriesMax : batchEntriesMax

const slowMillis = 100

/** Most log text in one append transaction, in UTF-16 code units: what a transaction may cost in memory on both sides. */
export const batchCharactersMax = 4 * 1024 * 1024

/** Most log text that waits in a lane, in UTF-16 code units. */
export const laneCharactersMax = 16 * 1024 * 1024

/** What was set aside fills this part of a batch where fresh appends wait too. */
export const setAsideShare = 1 / 4

/** Chunks of one lane that are being parked; what comes beyond that holds up the intake. */
export const parkingAtOnce = 4

/**
 * How long a full lane may hold up the intake before it stalls. Several workers at their limit, who wait for each other's
 * locks, need some hundred milliseconds for a transaction, and to park what they hold would only be more work for all.
 */
export const laneFullWaitMillis = 1_000

/** The broker delivers again after 30 s without a sign; every ten seconds we give one for what is still held. */
export const keepAliveMillis = 10_000

/** How long a stopping worker waits for transactions and events under way before it hands back. */
export const drainMillis = 5_000

/** How often a lane looks whether the database still has what it committed: one short read. */
export const lossCheckMillis = 30_000

/** First and longest delay after which the broker delivers again what a shard could not take. */
export const handBackMillis = { first: 1_000, longest: 60_000 }

/** Delay for the n-th redelivery: doubling, capped, jittered to 80 … 120 % so that a backlog does not come back at once. */
export const handBackDelay = (deliveryCount: number, random: number): number =>
  Math.round(
    Math.min(handBackMillis.first * 2 ** Math.min(deliveryCount - 1, 16), handBackMillis.longest) *
      (0.8 + 0.4 * random),
  )

/** Retries without end: 50 ms doubling, at most 5 s apart, jittered. */
export const retryForever = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered,
)

/** Reads that run at the same time on one shard, and that wait for it, before reads are handed back. */
export const readsPerShard = 8
export const readsWaitingPerShard = 64

/** How often a read is handed back before it is parked, which takes some seconds: most troubles are over by then. */
export const readHandBacks = 3

/** Reads under way in one worker. */
export const readsAtOnce = 256

/** Entries and bytes of log text fetched by one statement of a read: half a page, and the memory a read costs. */
export const fetchEntriesMax = 2_000
export const fetchBytesMax = 512 * 1024

/** Refused messages of a kind that wait for their dead letter, in all and in bytes of payload, and how many are written at the same time. */
export const refusalsWaiting = 1_000
export const refusalsBytesMax = 8 * 1024 * 1024
export const refusalsAtOnce = 64

/** How long refusals beyond those may hold up an intake: as long as a full lane may. */
export const refusalsFullMillis = laneFullWaitMillis
