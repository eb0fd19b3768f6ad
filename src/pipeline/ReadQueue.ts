/**
 * What the reads of one shard share: its statements, the fetching of first pages and the sending of pages, both of which several reads
 * do together, and the memory that they have of the worker's.
 */
import { Effect, Exit, Schema, type Scope, Semaphore } from "effect"
import { Broker, type OutgoingEvent } from "../broker/Broker.ts"
import type { LogEntry } from "../contract/LogEntry.ts"
import { pageMaxBytes } from "../contract/limits.ts"
import { Metrics } from "../observe/Metrics.ts"
import { Tracing } from "../trace/Tracing.ts"
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
import { begin, EntryTooLarge, type SmallRead, smallRead } from "./pages.ts"
import { nextQuery, type Read } from "./readPlan.ts"
import type { Shares } from "./Shares.ts"

/** The pages that were cut for another `max_payload` are too large now: the read has to start anew. */
export class PagesOutdated extends Schema.TaggedError<PagesOutdated>()("PagesOutdated", {}) {}

type Failure = ShardUnavailable | ReadRejected
type BeginFailure = Failure | EntryTooLarge | PagesOutdated
type Begun = Exit.Exit<number | undefined, BeginFailure>

/** A read that its first fetch answers, or what else has become of it. */
const beginRead = (read: Read, fetched: Exit.Exit<FirstPage, Failure>): SmallRead | Begun => {
  if (Exit.isFailure(fetched)) return Exit.failCause(fetched.cause)
  const small = smallRead(read, fetched.value)
  if (small === undefined) return Exit.succeed(fetched.value.upTo)
  return small instanceof EntryTooLarge ? Exit.fail(small) : small
}

const charactersOf = (fetched: ReadonlyArray<Exit.Exit<FirstPage, Failure>>): number => {
  let sum = 0
  for (const exit of fetched) if (Exit.isSuccess(exit)) for (const { log } of exit.value.entries) sum += log.length
  return sum
}

const isSmall = (begun: SmallRead | Begun): begun is SmallRead => !Exit.isExit(begun)

/** Pages of one read that were cut for a `max_payload`. */
export interface CutPages {
  readonly events: ReadonlyArray<OutgoingEvent>
  readonly pageMax: number
}

export interface ReadQueue {
  /** Has the first page of a read fetched, and sends everything if that is all; otherwise gives the end of its snapshot. */
  readonly begin: (read: Read) => Effect.Effect<number | undefined, BeginFailure>
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

/** `moved` is told whenever the reads of the shard get somewhere. */
export const make = Effect.fnUntraced(function* (
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
          pool.readFirstPages(shard, {
            order,
            maxBytes: limits.fetchBytesMax,
            reads: reads.map((read) => nextQuery(read.request, begin(read), limits.firstEntriesMax)),
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

  /** Sends events that were cut for a `max_payload`, as long as it is as large; whether they are sent. */
  const send = (events: ReadonlyArray<OutgoingEvent>, pageMax: number): Effect.Effect<boolean> =>
    publishWhile(events, () => broker.maxPayload() >= pageMax).pipe(
      Effect.tap((isSent) => {
        moved()
        return metrics.count("pages_sent_total", { shard }, isSent ? events.length : 0)
      }),
      Effect.provideContext(services),
    )
  const entriesRead = (entries: number) => metrics.count("entries_read_total", { shard }, entries)

  /** Sends what the first fetch of each read answers, and says what is left to do. */
  const sendSmall = Effect.fnUntraced(function* (
    reads: ReadonlyArray<Read>,
    fetched: ReadonlyArray<Exit.Exit<FirstPage, Failure>>,
  ) {
    const begun = fetched.map((exit, at) => beginRead(reads[at]!, exit))
    const small = begun.filter(isSmall)
    const events = small.flatMap((each) => each.events)
    const isSent = events.length === 0 || (yield* send(events, Math.max(...small.map(({ read }) => read.pageMax))))
    if (isSent) yield* entriesRead(small.reduce((sum, { entries }) => sum + entries, 0))
    return begun.map((each): Begun => {
      if (!isSmall(each)) return each
      if (!isSent) return Exit.fail(new PagesOutdated())
      each.read.delivery.trace?.sent()
      return Exit.succeed(undefined)
    })
  })

  const firstPages = (order: ReadOrder) =>
    new Batcher<Read, number | undefined, BeginFailure>({
      inputsMax: limits.firstPagesMax,
      sizeMax: Infinity,
      size: () => 0,
      atOnce: limits.firstPagesAtOnce,
      run: (reads) =>
        memory.use(shard, noObject, limits.turnBytes(pageMaxBytes(broker.maxPayload())), (lease) =>
          Effect.flatMap(fetchTogether(order, reads), (fetched) => {
            moved()
            // What it may have needed while nobody knew; until it is sent it needs this.
            const needed = limits.pageBytes(charactersOf(fetched))
            lease.shrink(Math.max(0, lease.weight - needed))
            return sendSmall(reads, fetched)
          }),
        ),
    })
  const byOrder = { asc: firstPages("asc"), desc: firstPages("desc"), position: firstPages("position") }

  const pages = new Batcher<CutPages, void, PagesOutdated>({
    inputsMax: limits.pagesMax,
    sizeMax: limits.pagesCharactersMax,
    size: ({ events }) => events.reduce((sum, { payload }) => sum + payload.length, 0),
    atOnce: limits.pagesAtOnce,
    run: (all) =>
      Effect.map(
        send(
          all.flatMap(({ events }) => events),
          Math.max(...all.map((pages) => pages.pageMax)),
        ),
        (isSent) => all.map(() => (isSent ? Exit.void : Exit.fail(new PagesOutdated()))),
      ),
  })

  return {
    begin: (read) => byOrder[read.request.order].ask(read),
    withMemory: ({ pageMax, request }, turn) => memory.use(shard, request.id, limits.turnBytes(pageMax), () => turn),
    fetch: (query) => Effect.tap(statements.withPermits(1)(pool.readPage(shard, query)), () => Effect.sync(moved)),
    publish: (cut) => pages.ask(cut),
    read: entriesRead,
    isContended: () => memory.waiting > 0,
    run: Effect.raceAllFirst([pages.run, ...Object.values(byOrder).map((batcher) => batcher.run)]),
  }
})
