/**
 * What the reads of one shard share: its statements, the fetching of first pages and the sending of pages, both of which several reads
 * do together, and the memory that they have of the worker's.
 */
import { Effect, Exit, Schema, type Scope, Semaphore } from "effect"
import { Broker, type OutgoingEvent } from "../broker/Broker.ts"
import type { LogEntry } from "../domain/LogEntry.ts"
import { pageMaxBytes } from "../domain/Protocol.ts"
import { Metrics } from "../observe/Metrics.ts"
import { Tracing } from "../observe/Tracing.ts"
import {
  type FirstPage,
  type PageQuery,
  type ReadOrder,
  ReadRejected,
  ShardPool,
  type ShardUnavailable,
} from "../shard/ShardPool.ts"
import { Batcher } from "./Batcher.ts"
import * as limits from "./limits.ts"
import { publishWhile } from "./outcome.ts"
import { nextQuery, type Read } from "./readPlan.ts"
import type { Shares } from "./Shares.ts"

/** The pages that were cut for another `max_payload` are too large now: the read has to start anew. */
export class PagesOutdated extends Schema.TaggedError<PagesOutdated>()("PagesOutdated", {}) {}

type Failure = ShardUnavailable | ReadRejected

/** Pages of one read that were cut for a `max_payload`. */
export interface CutPages {
  readonly events: ReadonlyArray<OutgoingEvent>
  readonly pageMax: number
}

export interface ReadQueue {
  /** Has the first page of a read fetched, and gives it what it needs until `use` has ended. */
  readonly withFirstPage: <A, E, R>(
    read: Read,
    use: (page: FirstPage) => Effect.Effect<A, E, R>,
  ) => Effect.Effect<A, E | Failure, R>
  /** Runs a turn of a longer read, when it has memory. */
  readonly withMemory: <A, E, R>(read: Read, turn: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Fetches a later page. */
  readonly fetch: (query: PageQuery) => Effect.Effect<ReadonlyArray<LogEntry>, Failure>
  /** Succeeds when all pages are confirmed. */
  readonly publish: (pages: CutPages) => Effect.Effect<void, PagesOutdated>
  /** So many entries were sent. */
  readonly read: (entries: number) => Effect.Effect<void>
  /** Do others wait for memory? */
  readonly isContended: () => boolean
  /** Works for ever. */
  readonly run: Effect.Effect<never>
}

/** First pages that are fetched together are kept for no object in particular. */
const noObject = -1n

/** A first page, and what ends its part of what the batch holds. */
interface Fetched {
  readonly page: FirstPage
  readonly release: () => void
}

/** `moved` is told whenever the reads of the shard get somewhere. */
export const make = Effect.fnUntraced(function* (
  index: number,
  shard: string,
  memory: Shares,
  moved: () => void,
): Effect.fn.Return<ReadQueue, never, Broker | ShardPool | Metrics | Scope.Scope> {
  const broker = yield* Broker
  const pool = yield* ShardPool
  const metrics = yield* Metrics
  const tracing = yield* Tracing
  const services = yield* Effect.context<Broker | Metrics>()
  const statements = Semaphore.makeUnsafe(limits.readsPerShard)

  const fetchTogether = (
    order: ReadOrder,
    reads: ReadonlyArray<Read>,
  ): Effect.Effect<ReadonlyArray<Exit.Exit<FirstPage, Failure>>> =>
    tracing
      .batch(
        "read batch",
        shard,
        reads,
        statements.withPermits(1)(
          pool.readFirstPages(index, {
            order,
            maxBytes: limits.fetchBytesMax,
            reads: reads.map(({ request }) =>
              nextQuery(request, { after: request.after, seen: 0 }, limits.firstEntriesMax),
            ),
          }),
        ),
      )
      .pipe(
        Effect.map((pages) => pages.map((page) => Exit.succeed(page))),
        Effect.catch((error) =>
          // One of them fails by its own fault, and not the others.
          error instanceof ReadRejected && reads.length > 1
            ? Effect.map(
                Effect.forEach(reads, (read) => fetchTogether(order, [read])),
                (exits) => exits.flat(),
              )
            : Effect.succeed(reads.map(() => Exit.fail(error))),
        ),
      )

  /** The memory of a batch is given back when the last of its reads is done. */
  const firstPages = (order: ReadOrder) =>
    new Batcher<Read, Fetched, Failure>({
      inputsMax: limits.firstPagesMax,
      sizeMax: Infinity,
      size: () => 0,
      atOnce: limits.firstPagesAtOnce,
      run: (reads) =>
        Effect.gen(function* () {
          const lease = yield* memory.take(shard, noObject, limits.turnBytes(pageMaxBytes(broker.maxPayload())))
          const exits = yield* Effect.onExit(fetchTogether(order, reads), (exit) =>
            Exit.isSuccess(exit) ? Effect.void : Effect.sync(() => lease.release()),
          )
          moved()
          let left = exits.filter(Exit.isSuccess).length
          const characters = exits
            .filter(Exit.isSuccess)
            .reduce((sum, { value }) => value.entries.reduce((more, { log }) => more + log.length, sum), 0)
          if (left === 0) lease.release()
          else lease.shrink(Math.max(0, lease.weight - limits.pageBytes(characters)))
          const release = () => {
            if (--left === 0) lease.release()
          }
          return exits.map((exit) => Exit.map(exit, (page) => ({ page, release })))
        }),
    })
  const byOrder = { asc: firstPages("asc"), desc: firstPages("desc"), position: firstPages("position") }

  const pages = new Batcher<CutPages, void, PagesOutdated>({
    inputsMax: limits.pagesMax,
    sizeMax: limits.pagesCharactersMax,
    size: ({ events }) => events.reduce((sum, { payload }) => sum + payload.length, 0),
    atOnce: limits.pagesAtOnce,
    run: (all) =>
      Effect.gen(function* () {
        const events = all.flatMap((pages) => pages.events)
        const pageMax = Math.max(...all.map((pages) => pages.pageMax))
        const isSent = yield* publishWhile(events, () => broker.maxPayload() >= pageMax)
        moved()
        yield* metrics.count("pages_sent_total", { shard }, isSent ? events.length : 0)
        return all.map(() => (isSent ? Exit.void : Exit.fail(new PagesOutdated())))
      }).pipe(Effect.provideContext(services)),
  })

  return {
    withFirstPage: (read, use) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(restore(byOrder[read.request.order].ask(read)), ({ page, release }) =>
          Effect.ensuring(restore(use(page)), Effect.sync(release)),
        ),
      ),
    withMemory: ({ pageMax, request }, turn) => memory.use(shard, request.id, limits.turnBytes(pageMax), () => turn),
    fetch: (query) => Effect.tap(statements.withPermits(1)(pool.readPage(index, query)), () => Effect.sync(moved)),
    publish: (cut) => pages.ask(cut),
    read: (entries) => metrics.count("entries_read_total", { shard }, entries),
    isContended: () => memory.waiting > 0,
    run: Effect.raceAllFirst([pages.run, ...Object.values(byOrder).map((batcher) => batcher.run)]),
  }
})
