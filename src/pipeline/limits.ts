/** Every bound of the pipelines, with its unit and its reason. How they must agree is checked at the end, as the program begins. */
import { ok } from "node:assert"
import { Schedule } from "effect"
import { ackWaitMillis } from "../broker/intakeLimits.ts"
import * as shard from "../shard/limits.ts"

/**
 * Most entries in one append transaction, and how many wait in a lane, so that the next batch is there when one ends. Larger
 * batches are faster still, but cost memory, and delay their first event.
 */
export const batchEntriesMax = 2_000

/**
 * The same after a transaction of so many entries that took so long. Where a batch of the ordinary size takes more than a
 * tenth of a second it waits for other workers or for the disk, and a larger one is hardly later. Twice as many would take 10 MiB more.
 */
export const batchEntries = (entries: number, millis: number): number =>
  millis > slowMillis * Math.max(1, entries / batchEntriesMax) ? 1.5 * batchEntriesMax : batchEntriesMax

/** A transaction that takes longer, in milliseconds, is slow for its size. */
export const slowMillis = 100

/** A lane is much slower than another one when its transactions take so many times as long. */
export const slowerTimes = 4

/** Most log text in one append transaction, in UTF-16 code units: what a transaction may cost in memory on both sides. */
export const batchCharactersMax = 4 * 1024 * 1024

/**
 * What all lanes of a worker may hold until it is settled, in bytes: waiting, in a transaction, or waiting for the confirmation of events.
 * And what one append takes beside its payload, headers and log.
 */
export const lanesBytes = 64 * 1024 * 1024
export const appendBytes = 1_024

/** What was parked fills this part of a batch where fresh appends wait too. */
export const parkedShare = 1 / 4

/** Chunks of one lane that are being parked, and bytes of all lanes; what comes beyond that holds up the intake. */
export const parkingAtOnce = 4
export const parkingBytes = 32 * 1024 * 1024

/**
 * How long a full lane may hold up the intake before it stalls, and so long refusals that find no room. Several workers at their limit, who wait for each other's
 * locks, need some hundred milliseconds for a transaction, and to park what they hold would only be more work for all.
 */
export const fullWaitMillis = 1_000

/** The broker delivers again after 30 s without a sign; every ten seconds we give one for what is still held. */
export const keepAliveMillis = 10_000

/** How long a stopping worker waits for transactions and events under way before it hands back. */
export const drainMillis = 5_000

/** How often a lane looks whether the database still has what it committed: one short read. */
export const lossCheckMillis = 30_000

/** First and longest delay after which the broker delivers again what a shard could not take. */
const handBackMillis = { first: 1_000, longest: 60_000 }

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

/** Statements of reads that run at the same time on one shard. */
export const readsPerShard = 8

/**
 * What all reads of a worker that are under way may take, in bytes, and what one of them takes until its request is answered, beside
 * the request itself: its fiber, its place in queues.
 */
export const readsWaitingBytes = 16 * 1024 * 1024
export const readWaitingBytes = 8 * 1024

/** What fetches and pages of all reads of a worker may take, in bytes. */
export const readsBytes = 64 * 1024 * 1024

/** Entries and bytes of log text fetched by one statement of a read: half a page, and the memory a read costs. */
export const fetchEntriesMax = 2_000
export const fetchBytesMax = 512 * 1024

/**
 * The same for the first pages of several reads, which are fetched together: so many reads, so many entries of each, and statements at
 * the same time. One that waits for a slow object holds up its neighbours, and so it is not alone.
 */
export const firstPagesMax = 128
export const firstEntriesMax = 256
export const firstPagesAtOnce = 4

/** Pages of several reads that are sent together, their characters, and how many such batches wait for their confirmation. */
export const pagesMax = 256
export const pagesCharactersMax = 1024 * 1024
export const pagesAtOnce = 4

/** Entries that one statement may look at which filters by time in the order of positions: some ten milliseconds. */
export const scanEntriesMax = 50_000

/** A page as entries, as text, and as bytes, at two bytes a character. */
export const pageBytes = (page: number): number => 4 * page + 4_096

/** What one turn of a read takes at most, in bytes: what was fetched, and a page. */
export const turnBytes = (pageMax: number): number => 2 * fetchBytesMax + pageBytes(pageMax)

/** Fetches after which a read makes way for others that wait: some pages, so that little is fetched twice. */
export const turnFetches = 8

/**
 * How long a shard that has no room may hold up the others while they have nothing to do, in milliseconds, and how much of that
 * it regains in each millisecond: so it is one part in two hundred in the long run.
 */
export const patienceMillis = 250
export const patienceRegained = 1 / 200

/** How often a request that waits for room looks whether it is in the way of others. */
export const placePollMillis = 20

/** A shard counts as one that has nothing to do if it got something done within this, and not as one that nobody uses. */
export const idleMillis = 10_000

/** How often a read is handed back before it is parked, which takes some seconds: most troubles are over by then. */
export const readHandBacks = 3

/** Deliveries after which a read that fails for a reason of its own is refused. */
export const readAttempts = 4

/** Refused messages of a kind that wait for their dead letter, in all and in bytes of payload, and how many are written at the same time. */
export const refusalsWaiting = 1_000
export const refusalsBytesMax = 8 * 1024 * 1024
export const refusalsAtOnce = 64

ok(2 * keepAliveMillis < ackWaitMillis, "one sign that is lost does not have a delivery given to another worker")
ok(drainMillis < ackWaitMillis, "what a worker finishes at its end is still its own")
ok(readsPerShard <= shard.readsAtOnce, "reads that begin find a session")
ok(batchCharactersMax < lanesBytes && appendBytes * batchEntriesMax < lanesBytes, "a lane can hold a full batch")
ok(firstEntriesMax <= fetchEntriesMax, "a first page is no larger than a fetch")
ok(patienceMillis < keepAliveMillis && fullWaitMillis < keepAliveMillis, "who waits for room is kept alive meanwhile")
ok(parkedShare > 0 && parkedShare < 1, "neither parked nor fresh appends wait for ever")
ok(refusalsAtOnce <= refusalsWaiting, "as many refusals wait as are stored at once")
ok(handBackMillis.first < handBackMillis.longest, "a delay grows")
