/**
 * The query pipeline: deliveries → decode → ring → pages from the shard → response events → ack.
 *
 * A read is one consistent snapshot: positions are given in the order of commit and without gaps, so "all up to the count
 * that the object had at the start" is a snapshot that needs no transaction and no connection between pages.
 *
 * A read that is interrupted (a worker killed, a shard lost) is delivered again and starts anew with page 0, perhaps while
 * the first worker still sends. Each page names its snapshot: those of one snapshot are the same whoever sends them, so the
 * broker drops repeated ones, and a client puts together those with the same one.
 */
import { Clock, Effect, FiberSet, Random, Result, Semaphore, Stream } from "effect"
import { Broker, type Delivery, type OutgoingEvent } from "../broker/Broker.ts"
import type { Cursor } from "../domain/Cursor.ts"
import type { LogEntry } from "../domain/LogEntry.ts"
import { decodeRead, type ReadRequest } from "../domain/Protocol.ts"
import { retryReason } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { watched } from "../observe/Parts.ts"
import { Tracing } from "../observe/Tracing.ts"
import { HashRing } from "../placement/HashRing.ts"
import { ShardPool, type ShardUnavailable } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { makePacker } from "./paging.ts"
import type { Source } from "./Lane.ts"
import { logDelivery, outcomeId, persist, publishForever, secondsSince } from "./outcome.ts"
import { refuse } from "./Refusals.ts"
import type { WorkerOptions } from "./Worker.ts"

const cursorOf = (order: ReadRequest["order"], entry: LogEntry): Cursor =>
  order === "position" ? { order, position: entry.position } : { order, timestamp: entry.timestamp, seq: entry.seq }

/**
 * Everything that the pages of a request depend on: the entries that it sees, and how large a page may be. Whoever changes
 * how pages are cut adds to it.
 */
const snapshotName = (upTo: number, maxPayload: number): string => `${upTo.toString(36)}.${maxPayload.toString(36)}`

/** What the reads of one shard may use of a worker. */
interface Share {
  readonly permits: Semaphore.Semaphore
  /** Reads that run or wait. */
  waiting: number
  /** Counts what they get done. */
  moves: number
}

/** Fetches and sends all pages of one read; fails only when the shard does. */
const sendPages = Effect.fnUntraced(function* (delivery: Delivery, request: ReadRequest, index: number, share: Share) {
  const broker = yield* Broker
  const pool = yield* ShardPool
  const metrics = yield* Metrics
  const shard = (yield* HashRing).shards[index]!.name
  const { id, order, from, to, limit, requestId, replyTo } = request
  const upTo = yield* pool.count(index, id)
  const maxPayload = broker.maxPayload()
  const snapshot = snapshotName(upTo, maxPayload)
  const packer = makePacker(id, requestId, maxPayload, snapshot)
  // Without bounds in time or place, having seen all of the snapshot is the end: no last, empty fetch.
  const expected = from === undefined && to === undefined && request.after === undefined ? upTo : Infinity

  const fetch = (after: Cursor | undefined, remaining: number) =>
    pool.readPage(index, {
      id,
      order,
      after,
      from,
      to,
      upTo,
      // One more than is wanted tells whether `limit` cuts the read short.
      maxEntries: Math.min(limits.fetchEntriesMax, remaining + 1),
      maxBytes: limits.fetchBytesMax,
    })
  let sent = 0
  const publish = Effect.fnUntraced(function* (payloads: ReadonlyArray<string>) {
    if (payloads.length === 0) return
    const trace = delivery.trace?.send(payloads.length)
    const events = payloads.map((payload): OutgoingEvent => ({
      payload,
      messageId: `${outcomeId(delivery)}-${snapshot}-${sent++}`,
      replyTo,
      trace,
    }))
    yield* publishForever(events)
    delivery.trace?.sent()
    share.moves++
    yield* metrics.count("pages_sent_total", { shard }, events.length)
  })

  let after = request.after
  let seen = 0
  let remaining = limit ?? Infinity
  let next: Cursor | undefined
  while (seen < expected && upTo > 0) {
    const fetched = yield* fetch(after, remaining)
    if (fetched.length === 0) break
    const entries = fetched.length > remaining ? fetched.slice(0, remaining) : fetched
    seen += entries.length
    remaining -= entries.length
    if (entries.length > 0) after = cursorOf(order, entries.at(-1)!)
    yield* publish(packer.add(entries))
    const tooLarge = packer.tooLarge()
    if (tooLarge !== undefined) {
      const message = `entry ${tooLarge.position}: needs ${tooLarge.bytes} bytes, more than the broker's max_payload of ${maxPayload} leaves`
      return yield* refuse("query", delivery, { code: "entry_too_large", message, id, requestId, replyTo })
    }
    yield* metrics.count("entries_read_total", { shard }, entries.length)
    if (fetched.length > entries.length) {
      next = after
      break
    }
  }
  yield* publish([packer.finish(next)])
  delivery.ack()
  metrics.observer("query_delay_seconds", {})(secondsSince(delivery, yield* Clock.currentTimeMillis))
  yield* metrics.count("messages_total", { subject: "query", outcome: "ok" })
})

/** Serves reads until interrupted; a read that is under way then is handed back. */
export const runQueries = ({ responseTopic, debug }: WorkerOptions) =>
  Effect.gen(function* () {
    const broker = yield* Broker
    const ring = yield* HashRing
    const metrics = yield* Metrics
    const tracing = yield* Tracing
    // A share of its own for each shard: reads that hang on one can't use up the slots of the others.
    const shares = ring.shards.map((): Share => ({
      permits: Semaphore.makeUnsafe(limits.readsPerShard),
      waiting: 0,
      moves: 0,
    }))
    yield* Effect.forEach(shares, (share, index) =>
      watched({
        name: `reads of ${ring.shards[index]!.name}`,
        subject: "query",
        held: () => share.waiting,
        moves: () => share.moves,
      }),
    )

    /** For a while a read is handed back; then it is parked, so that it does not count as under way in the intake. */
    const handBack = Effect.fnUntraced(function* (delivery: Delivery, shard: string, source: Source) {
      if (source === "intake" && delivery.deliveryCount > limits.readHandBacks) {
        const tooLarge = yield* persist("park", broker.park("reads", shard, [delivery]))
        if (tooLarge.length === 0) {
          delivery.ack()
          return yield* metrics.count("parked_total", { shard })
        }
      }
      yield* metrics.count("handed_back_total", { shard })
      delivery.retry(limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    })

    const serve = Effect.fnUntraced(function* (delivery: Delivery, source: Source) {
      if (debug) yield* logDelivery("query", delivery)
      if (delivery.deliveryCount > 1) yield* metrics.count("redeliveries_total", { subject: "query" })
      const decoded = decodeRead(delivery.text, { maxPayload: broker.maxPayload(), responseTopic })
      if (Result.isFailure(decoded)) return yield* refuse("query", delivery, decoded.failure)
      const request = decoded.success
      const index = ring.shardOf(request.id)
      const share = shares[index]!
      const shard = ring.shards[index]!.name
      if (share.waiting >= limits.readsWaitingPerShard) return yield* handBack(delivery, shard, source)
      share.waiting++
      const unavailable = Effect.fnUntraced(function* (error: ShardUnavailable) {
        yield* metrics.count("retries_total", { part: "read", reason: retryReason(error.reason) })
        yield* Effect.logWarning(`${error.message}; the read is handed back`)
        yield* handBack(delivery, shard, source)
      })
      yield* sendPages(delivery, request, index, share).pipe(
        Effect.catchTag("ShardUnavailable", unavailable),
        share.permits.withPermits(1),
        Effect.ensuring(
          Effect.sync(() => {
            share.waiting--
            share.moves++
          }),
        ),
      )
    })

    /** A long read is one delivery: the broker hears of it until it ends, and gets it back when the worker stops. */
    const attended = (delivery: Delivery, source: Source) => {
      tracing.receive(delivery)
      return tracing.within(delivery, serve(delivery, source)).pipe(
        Effect.raceFirst(
          Effect.forever(
            Effect.delay(
              Effect.sync(() => delivery.working()),
              limits.keepAliveMillis,
            ),
          ),
        ),
        Effect.onInterrupt(() => Effect.sync(() => delivery.retry(0))),
      )
    }

    const reads = yield* FiberSet.make<void, never>()
    const slots = Semaphore.makeUnsafe(limits.readsAtOnce)
    const admit = (source: Source) => (deliveries: ReadonlyArray<Delivery>) => {
      let next = 0
      return Effect.gen(function* () {
        while (next < deliveries.length) {
          yield* slots.take(1)
          yield* FiberSet.run(reads, Effect.ensuring(attended(deliveries[next++]!, source), slots.release(1)))
        }
      }).pipe(
        Effect.onInterrupt(() => Effect.sync(() => deliveries.slice(next).forEach((delivery) => delivery.retry(0)))),
      )
    }
    const intake = Stream.runForEachArray(broker.queries, admit("intake"))
    // While a shard is down few of them are under way; so they are tried without asking whether it is.
    const parked = ring.shards.map(({ name }) =>
      Stream.runForEachArray(broker.parked("reads", name), admit("setAside")),
    )
    const pulling = Effect.all([intake, ...parked], { concurrency: "unbounded", discard: true })
    yield* Effect.raceFirst(pulling, FiberSet.join(reads))
  }).pipe(Effect.scoped)
