using Workerd = import "/workerd/workerd.capnp";

# The address and the folder are given on the command line.
const config :Workerd.Config = (
  services = [
    (name = "ship", worker = .ship),
    (name = "data", disk = (writable = true)),
  ],
  sockets = [(name = "http", http = (), service = "ship")],
);

const ship :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-11-01",
  durableObjectNamespaces = [
    (className = "SessionAgent", uniqueKey = "agent", enableSql = true),
    (className = "EventBus", uniqueKey = "bus", enableSql = true),
    (className = "Directory", uniqueKey = "directory", enableSql = true),
  ],
  durableObjectStorage = (localDisk = "data"),
  bindings = [
    (name = "AGENT", durableObjectNamespace = "SessionAgent"),
    (name = "BUS", durableObjectNamespace = "EventBus"),
    (name = "DIRECTORY", durableObjectNamespace = "Directory"),
  ],
);
