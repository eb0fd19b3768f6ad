/** A connection as a client makes it, to a server list that may carry credentials; the library takes none from a URL. */
import { connect, type NatsConnection, type NodeConnectionOptions } from "@nats-io/transport-node"
import { connectionOptions } from "../../src/nats/connectionOptions.ts"

export const connectTo = (servers: string, options: NodeConnectionOptions = {}): Promise<NatsConnection> =>
  connect({ ...connectionOptions(servers, "test"), ...options })
