/** A worker: both pipelines, side by side, on whatever layers are given. */
import { Effect } from "effect"
import { Broker } from "../broker/Broker.ts"
import { runAppends } from "./AppendPipeline.ts"
import { runQueries } from "./QueryPipeline.ts"

export interface WorkerOptions {
  /** Where events go and what `reply_to` may lie below. */
  readonly responseTopic: string
  /** Log every message at debug level. */
  readonly debug: boolean
}

/**
 * Runs until interrupted; a failure or defect of either pipeline ends both, and so does the end of the connection to the
 * broker, after which neither could do anything more.
 */
export const runWorker = (options: WorkerOptions) =>
  Effect.all([runAppends(options), runQueries(options), Broker.use((broker) => broker.closed)], {
    concurrency: "unbounded",
    discard: true,
  })
