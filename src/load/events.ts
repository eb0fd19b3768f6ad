/** Of all events that the service publishes, those that answer this run. */
import { type AppendedEvent, decodeEvent, type PageEvent, type RefusedEvent } from "../contract/Event.ts"

/** An event that names a request. */
export type Answering<E> = E & { readonly requestId: string }

export type LoadEvent = Answering<AppendedEvent> | Answering<PageEvent> | Answering<RefusedEvent>

/** The event in a message, if its request id begins with the run's name; `undefined` for all others. */
export const readEvent = (data: Uint8Array, run: string): LoadEvent | undefined => {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength)
  // Cheap for the pages of others, of which there may be many.
  if (!bytes.includes(run)) return undefined
  const event = decodeEvent(bytes.toString())
  return event?.requestId?.startsWith(run) === true && event.type !== "unknown" ? (event as LoadEvent) : undefined
}
