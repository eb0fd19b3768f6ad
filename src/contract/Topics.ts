/** The subjects of the contract, and those that a worker derives from them. Pure. */

/** Subjects; each names the variable `NATS_…_TOPIC` that sets it. */
export interface Topics {
  readonly logs: string
  readonly query: string
  readonly response: string
  /** Dead letters lie below it. */
  readonly dead: string
}

export const defaultTopics: Topics = { logs: "logs", query: "query", response: "response", dead: "dead" }

/** The durable consumer of an intake stream, which all workers share. */
export const consumerName = "objectlog"

/** Below it lie the requests that were parked. */
export const parkedTopic = (logsTopic: string): string => `${logsTopic}_parked`

/** Below it lies nothing but bytes: room in the broker that can be given up. */
export const reserveTopic = (logsTopic: string): string => `${logsTopic}_reserve`
