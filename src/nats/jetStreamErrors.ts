/** What the server's answers mean, by its codes and texts from 2.9 to 2.15, and what it means that there is none. */
import { JetStreamApiError } from "@nats-io/jetstream"
import { errors } from "@nats-io/transport-node"

/** An error of whoever asked, with what the client library said. */
interface Failure {
  readonly message: string
  readonly cause: unknown
}

const codeOf = ({ cause }: Failure): number | undefined => (cause instanceof JetStreamApiError ? cause.code : undefined)

export const isStreamNotFound = (error: Failure): boolean => codeOf(error) === 10_059

/** There is none, or there is not even its stream. */
export const isNotFound = (error: Failure): boolean => isStreamNotFound(error) || codeOf(error) === 10_014

/** A stream of that name exists with another configuration. */
export const isNameInUse = (error: Failure): boolean => codeOf(error) === 10_058

/** The most deliveries that the server lets a consumer have under way, where it refused more. */
export const ackPendingLimit = (error: Failure): number | undefined => {
  if (codeOf(error) !== 10_121) return undefined
  const limit = /limit of (\d{1,9})/.exec(error.message)?.[1]
  return limit === undefined ? undefined : Number(limit)
}

/** The store of the server or of the account is full; nothing is stored until something is deleted. */
const storeFull = new Set([
  10023, // insufficient resources: the server's max_file_store
  10002, // resource limits exceeded for account: its max_storage
])

/** Storing failed; the text says why. */
const storeFailed = 10077

/** A limit of the stream itself, under discard new. */
const streamFull = /^maximum (?:messages|bytes)/

/** The server can't reserve as much as a new stream may take. */
const nothingToSetAside = new Set([
  ...storeFull,
  10047, // insufficient storage resources available
  10122, // stream max bytes exceeds account limit max stream bytes
])

/** In a cluster the reason comes with: no suitable peers for placement. */
const noPeers = 10005

/** Whether a stream was refused because it would take more room than there is. */
export const lacksRoom = (error: Failure): boolean => {
  const code = codeOf(error) ?? 0
  return nothingToSetAside.has(code) || (code === noPeers && /storage/i.test(error.message))
}

/** A message was neither confirmed nor refused. */
export class Unconfirmed extends Error {}

/** The server does not answer, or nothing of it that could. */
export const isSilence = ({ cause }: Failure): boolean =>
  cause instanceof Unconfirmed || cause instanceof errors.TimeoutError || cause instanceof errors.NoRespondersError

/** A message was refused because there is no room for it; that lasts until something is deleted. */
export class StoreFull extends Error {}

/** The refusal for lack of room in the answer to a publish, `{"error":{"err_code":…,"description":…},…}`, if it is one. */
export const fullStoreIn = (answer: string): StoreFull | undefined => {
  const code = Number(/"err_code":(\d+)/.exec(answer)?.[1])
  const text = /"description":"([^"]*)"/.exec(answer)?.[1] ?? answer
  return storeFull.has(code) || (code === storeFailed && streamFull.test(text)) ? new StoreFull(text) : undefined
}

export const isStoreFull = ({ cause }: Failure): boolean => cause instanceof StoreFull
