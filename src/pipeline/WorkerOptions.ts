/** What a worker is told besides its layers. */
export interface WorkerOptions {
  /** Where events go and what `reply_to` may lie below. */
  readonly responseTopic: string
  /** Log every message at debug level. */
  readonly debug: boolean
}
