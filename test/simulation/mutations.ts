/**
 * Deliberate mistakes: each must be caught, or the checker proves nothing.
 *
 * They are put between the pipelines and what they run on: around the services, into the text of a statement, or into the
 * tables. The pipelines themselves are the real ones.
 */
import { Clock, Effect, Schedule, Stream } from "effect"
import type { Broker, Delivery, OutgoingEvent } from "../../src/broker/Broker.ts"
import type { NewEntry, Placed } from "../../src/contract/LogEntry.ts"
import type { ObjectId } from "../../src/contract/ObjectId.ts"
import { BatchRejected, type ShardPool } from "../../src/shard/ShardPool.ts"
import type { Kind } from "./Plan.ts"
import type { TableOptions } from "./SimulatedPostgres.ts"

type BrokerService = Broker["Service"]
type Shards = ShardPool["Service"]

/** A mistake, and where it is made. */
export interface Mutation {
  readonly name: string
  readonly broker: (broker: BrokerService) => BrokerService
  readonly shards: (shards: Shards) => Shards
  /** Changes the text of a statement. */
  readonly rewrite: (sql: string) => string
  readonly tables: TableOptions
  /** Only runs of this kind go where it can do harm, and the first seed that is worth a try. */
  readonly kind?: Kind
  readonly from?: number
}

const same = <A>(value: A): A => value

export const unchanged: Mutation = {
  name: "none",
  broker: same,
  shards: same,
  rewrite: same,
  tables: { uniqueKeys: true },
}

const broker = (name: string, change: (broker: BrokerService) => Partial<BrokerService>): Mutation => ({
  ...unchanged,
  name,
  broker: (real) => ({ ...real, ...change(real) }),
})

const shards = (name: string, change: (shards: Shards) => Partial<Shards>): Mutation => ({
  ...unchanged,
  name,
  shards: (real) => ({ ...real, ...change(real) }),
})

const statement = (name: string, from: string | RegExp, to: string): Mutation => ({
  ...unchanged,
  name,
  rewrite: (sql) => sql.replace(from, to),
})

const withoutKeys = (mutation: Mutation): Mutation => ({
  ...mutation,
  name: mutation === unchanged ? "no unique keys" : `${mutation.name}, and no unique keys`,
  tables: { uniqueKeys: false },
})

// --- The broker's side

/** Settles what `drops` says before the pipeline has it; `passes` it on all the same or not. */
const settledFirst =
  (drops: (delivery: Delivery) => boolean, passes: boolean) =>
  <E>(deliveries: Stream.Stream<Delivery, E>): Stream.Stream<Delivery, E> =>
    deliveries.pipe(
      Stream.filter((delivery) => {
        if (!drops(delivery)) return true
        delivery.ack()
        return passes
      }),
    )

const everywhere = (
  real: BrokerService,
  change: <E>(deliveries: Stream.Stream<Delivery, E>) => Stream.Stream<Delivery, E>,
): Partial<BrokerService> => ({
  appends: change(real.appends),
  parked: (kind, shard) => (kind === "appends" ? change(real.parked(kind, shard)) : real.parked(kind, shard)),
})

const isAppended = ({ payload }: OutgoingEvent) => payload.startsWith('{"type":"append","status":"ok"')
const isPage = ({ payload }: OutgoingEvent) => payload.startsWith('{"type":"query","status":"ok"')

const editPages =
  (edit: (event: OutgoingEvent) => ReadonlyArray<OutgoingEvent>) =>
  (real: BrokerService): Partial<BrokerService> => ({
    publish: (events) => real.publish(events.flatMap((event) => (isPage(event) ? edit(event) : [event]))),
  })

// --- The shards' side

/** Answers before anything is stored, with what is likely to come out; stores it later. */
const answeredFirst = (real: Shards): Partial<Shards> => ({
  append: (shard, batch) =>
    Effect.gen(function* () {
      const counts = new Map<ObjectId, number>()
      const placed: Array<Placed> = []
      for (const { id, seq, timestamp } of batch) {
        const read = { id, after: undefined, from: undefined, to: undefined, scanTo: 0, maxEntries: 1 }
        const [page] = yield* Effect.catchTag(
          real.readFirstPages(shard, { order: "asc", reads: [read], maxBytes: 1 }),
          "ReadRejected",
          Effect.die,
        )
        const position = (counts.get(id) ?? page!.upTo) + 1
        counts.set(id, position)
        placed.push({ _tag: "Stored", position, timestamp, seq })
      }
      yield* Effect.forkDetach(
        Effect.ignore(Effect.retry(real.append(shard, batch), { schedule: Schedule.spaced("1 second"), times: 100 })),
      )
      return placed
    }),
})

const givesUp = (real: Shards): Partial<Shards> => {
  const failures = new Map<string, number>()
  return {
    append: (shard, batch) =>
      real.append(shard, batch).pipe(
        Effect.tap(() => Effect.sync(() => failures.delete(shard))),
        Effect.catchTag("ShardUnavailable", (error) => {
          const count = (failures.get(shard) ?? 0) + 1
          failures.set(shard, count)
          return Effect.fail(
            count < 3 ? error : new BatchRejected({ shard: error.shard, sqlState: "54000", cause: error }),
          )
        }),
      ),
  }
}

const dropsWholeBatch = (real: Shards): Partial<Shards> => {
  const dropped = new Set<NewEntry>()
  return {
    append: (shard, batch) =>
      Effect.suspend(() =>
        batch.some((entry) => dropped.has(entry))
          ? Effect.fail(new BatchRejected({ shard: "", sqlState: "54000", cause: new Error("in a bad batch") }))
          : Effect.tapErrorTag(real.append(shard, batch), "BatchRejected", () =>
              Effect.sync(() => {
                for (const entry of batch) dropped.add(entry)
              }),
            ),
      ),
  }
}

const staleCount = (real: Shards): Partial<Shards> => {
  const known = new Map<ObjectId, number>()
  return {
    readFirstPages: (shard, query) =>
      Effect.map(real.readFirstPages(shard, query), (pages) =>
        pages.map((page, at) => {
          const { id } = query.reads[at]!
          const stale = known.get(id) ?? page.upTo
          known.set(id, page.upTo)
          return { ...page, upTo: stale, entries: page.entries.filter(({ position }) => position <= stale) }
        }),
      ),
  }
}

const ownClock = (real: Shards): Partial<Shards> => ({
  append: (shard, batch) =>
    Effect.flatMap(Clock.currentTimeNanos, (timestamp) =>
      real.append(
        shard,
        batch.map((entry) => ({ ...entry, timestamp })),
      ),
    ),
})

const noIdentity = statement(
  "no look-up of the identity",
  /order by timestamp, seq limit 1\s+\) as found$/,
  "$& where false",
)

export const mutations: ReadonlyArray<Mutation> = [
  broker("acknowledged before the commit", (real) =>
    everywhere(
      real,
      settledFirst(() => true, true),
    ),
  ),
  broker("acknowledged before the event is confirmed", (real) => ({
    publish: (events) => Effect.asVoid(Effect.forkDetach(Effect.ignore(real.publish(events)))),
  })),
  shards("event before the commit", answeredFirst),
  broker("no event", (real) => ({ publish: (events) => real.publish(events.filter((event) => !isAppended(event))) })),
  shards("given up after three attempts", givesUp),
  broker("dropped at the third delivery", (real) =>
    everywhere(
      real,
      settledFirst(({ deliveryCount }) => deliveryCount > 2, false),
    ),
  ),
  {
    ...broker("parked before it is stored there", (real) => ({
      park: (kind, shard, deliveries) =>
        Effect.as(Effect.forkDetach(Effect.ignore(real.park(kind, shard, deliveries))), []),
    })),
    kind: "flood",
  },
  broker("no dead letter", () => ({ deadLetter: () => Effect.void })),
  shards("poison takes its batch along", dropsWholeBatch),
  statement("no FOR UPDATE", / for update$/, ""),
  withoutKeys(statement("no FOR UPDATE", / for update$/, "")),
  statement("no ON CONFLICT", /on conflict do nothing$/, ""),
  noIdentity,
  withoutKeys(noIdentity),
  withoutKeys(unchanged),
  statement("no look-up of the message id", /order by message_id limit 1\s+\) as found$/, "$& where false"),
  statement("message id not stored", "escaped, message_id)", "escaped)"),
  statement("positions with gaps", "entries = changed.entries", "entries = changed.entries + 1"),
  shards("identity from the worker's clock", ownClock),
  statement("sorted by commit", /order by timestamp, seq$/, "order by position"),
  // Seed 2 has a read that never ends then; it is caught, but only after a minute.
  { ...statement("cursor off by one", "(timestamp, seq) > (", "(timestamp, seq) >= ("), from: 3 },
  // Few runs append between the fetches of one read: one in some hundred of these.
  {
    ...statement("read without a snapshot", /and position <= \$\d+\s+order by/, "order by"),
    kind: "large entries",
    from: 8_100,
  },
  shards("read from a stale state", staleCount),
  shards("entry skipped between pages", (real) => ({
    readPage: (index, query) => Effect.map(real.readPage(index, query), (entries) => entries.slice(1)),
  })),
  broker(
    "page sent twice as two",
    editPages((event) => {
      const number = Number(/"page":(\d+)/.exec(event.payload)![1])
      const payload = event.payload.replace(/"page":\d+/, `"page":${number + 1}`)
      return event.payload.includes('"last":true')
        ? [
            { ...event, payload: event.payload.replace('"last":true', '"last":false') },
            { ...event, payload, messageId: `${event.messageId}-again` },
          ]
        : [event]
    }),
  ),
  broker(
    "page left out",
    editPages((event) => (event.payload.includes('"last":false') ? [] : [event])),
  ),
  {
    ...broker(
      "pages of two snapshots joined",
      editPages((event) => [
        {
          ...event,
          payload: event.payload.replace(/"snapshot":"[^"]*"/, '"snapshot":"any"'),
          messageId: `${event.messageId} any`,
        },
      ]),
    ),
    kind: "contended reads",
  },
]
