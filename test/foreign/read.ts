/** Reads logs through the service, as the contract says that a client should. */
import type { NatsConnection } from "@nats-io/transport-node"
import { Effect } from "effect"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { type Body, type Entry, parseEvent } from "./Event.ts"
import { within } from "./within.ts"

type Page = Body & Required<Pick<Body, "snapshot" | "page" | "last" | "entries">>

export interface ReadResult {
  readonly entries: ReadonlyArray<Entry>
  readonly next: string | undefined
}

let reads = 0

/** One read; `undefined` when it was not answered in time, as is to be expected during an outage. */
export const read = (
  connection: NatsConnection,
  request: { readonly id: bigint | number; readonly fields?: Readonly<Record<string, string | number>> },
  withinMillis: number,
): Effect.Effect<ReadResult | undefined> =>
  Effect.callback<ReadResult>((resume) => {
    const number = ++reads
    const inbox = `_INBOX.foreign.${process.pid}.${number}`
    const snapshots = new Map<string, Array<Page>>()
    const subscription = connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error !== null) return
        const { body } = parseEvent(message.subject, message.string())
        if (body.status !== "ok") return
        const page = body as Page
        // As the contract says: the pages of one snapshot belong together, in whatever order they come.
        const pages = snapshots.get(page.snapshot) ?? []
        snapshots.set(page.snapshot, pages)
        pages[page.page] = page
        const end = pages.at(-1)!
        if (!end.last || Object.keys(pages).length < pages.length) return
        // What is returned below runs on interruption only.
        subscription.unsubscribe()
        resume(Effect.succeed({ entries: pages.flatMap((held) => held.entries), next: end.next }))
      },
    })
    const more = Object.entries({ ...request.fields, request_id: `q.${number}`, reply_to: inbox })
      .map(([name, value]) => `,${JSON.stringify(name)}:${JSON.stringify(value)}`)
      .join("")
    connection.publish("query", `{"id":${request.id}${more}}`)
    return Effect.sync(() => subscription.unsubscribe())
  }).pipe(
    Effect.timeoutOption(withinMillis),
    Effect.map((found) => (found._tag === "Some" ? found.value : undefined)),
  )

export const makeReadConnection = (servers: string) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(servers, { maxReconnectAttempts: -1, reconnectTimeWait: 100 })),
    (open) => Effect.promise(() => open.close()),
  )

/** All entries of an object; the test fails if they don't come. */
export const readLog = (connection: NatsConnection, id: number): Effect.Effect<ReadonlyArray<Entry>> =>
  read(connection, { id }, 15_000).pipe(
    Effect.repeat({ until: (found) => found !== undefined, times: 1 }),
    Effect.map((found) => found!.entries),
    within(`object ${id} is read`, 15_000),
  )
