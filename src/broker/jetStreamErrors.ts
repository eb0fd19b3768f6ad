/** What the server's answers mean, by its codes. */
import { JetStreamApiError } from "@nats-io/jetstream"
import type { BrokerUnavailable } from "./Broker.ts"

const codeOf = ({ cause }: BrokerUnavailable): number | undefined =>
  cause instanceof JetStreamApiError ? cause.code : undefined

export const isStreamNotFound = (error: BrokerUnavailable): boolean => codeOf(error) === 10_059

/** There is none, or there is not even its stream. */
export const isNotFound = (error: BrokerUnavailable): boolean => isStreamNotFound(error) || codeOf(error) === 10_014

/** A stream of that name exists with another configuration. */
export const isNameInUse = (error: BrokerUnavailable): boolean => codeOf(error) === 10_058

/** The most deliveries that the server lets a consumer have under way, where it refused more. */
export const ackPendingLimit = (error: BrokerUnavailable): number | undefined => {
  if (codeOf(error) !== 10_121) return undefined
  const limit = /limit of (\d{1,9})/.exec(error.message)?.[1]
  return limit === undefined ? undefined : Number(limit)
}
