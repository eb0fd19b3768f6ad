/** What nats-server says when it can't store: its codes and texts, from 2.9 to 2.15, behind names. */
import { JetStreamApiError } from "@nats-io/jetstream"
import { errors } from "@nats-io/transport-node"
import type { BrokerUnavailable } from "./Broker.ts"

/** The store of the server or of the account is full; nothing is stored until something is deleted. */
const storeFull = new Set([
  10023, // insufficient resources: the server's max_file_store
  10002, // resource limits exceeded for account: its max_storage
])

/** Storing failed; the text says why. */
const storeFailed = 10077

/** A limit of the stream itself, under discard new. */
const streamFull = /^maximum (?:messages|bytes)/

/** The server can't set aside as much as a new stream may take. */
const nothingToSetAside = new Set([
  ...storeFull,
  10047, // insufficient storage resources available
  10122, // stream max bytes exceeds account limit max stream bytes
])

/** In a cluster the reason comes with: no suitable peers for placement. */
const noPeers = 10005

/** Whether a stream was refused because it would take more room than there is. */
export const lacksRoom = ({ cause }: BrokerUnavailable): boolean =>
  cause instanceof JetStreamApiError &&
  (nothingToSetAside.has(cause.code) || (cause.code === noPeers && /storage/i.test(cause.message)))

/** A message was neither confirmed nor refused. */
export class Unconfirmed extends Error {}

/** The server does not answer, or nothing of it that could. */
export const isSilence = ({ cause }: BrokerUnavailable): boolean =>
  cause instanceof Unconfirmed || cause instanceof errors.TimeoutError || cause instanceof errors.NoRespondersError

/** A message was refused because there is no room for it; that lasts until something is deleted. */
export class StoreFull extends Error {}

/** The refusal for lack of room in the answer to a publish, `{"error":{"err_code":…,"description":…},…}`, if it is one. */
export const fullStoreIn = (answer: string): StoreFull | undefined => {
  const code = Number(/"err_code":(\d+)/.exec(answer)?.[1])
  const text = /"description":"([^"]*)"/.exec(answer)?.[1] ?? answer
  return storeFull.has(code) || (code === storeFailed && streamFull.test(text)) ? new StoreFull(text) : undefined
}

export const isStoreFull = ({ cause }: BrokerUnavailable): boolean => cause instanceof StoreFull
