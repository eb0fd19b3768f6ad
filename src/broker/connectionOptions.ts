/** How a server list becomes options of the client library. */
import type { NodeConnectionOptions } from "@nats-io/transport-node"

/** Servers and credentials apart: the library takes none from a URL. Shown without them. */
export const connectionOptions = (
  servers: string,
): { readonly options: NodeConnectionOptions; readonly shown: string } => {
  const hosts: Array<string> = []
  let credentials: NodeConnectionOptions = {}
  let tls = false
  for (const server of servers.split(",")) {
    const url = URL.parse(server.includes("://") ? server.trim() : `nats://${server.trim()}`)
    // What is no URL is not shown either: it may hold a password all the same.
    if (url === null || url.host === "") continue
    hosts.push(url.host)
    tls ||= url.protocol === "tls:"
    const [user, pass] = [decodeURIComponent(url.username), decodeURIComponent(url.password)]
    if (user !== "") credentials = pass === "" ? { token: user } : { user, pass }
  }
  return { options: { servers: hosts, ...credentials, ...(tls ? { tls: {} } : {}) }, shown: hosts.join(", ") }
}
