"""What `mptune launch doctor` asks a Kubernetes cluster: it creates nothing.

Pods are created as a dry run, so that the API server applies its rules to them: Pod Security,
quotas, priority classes, service accounts. A user with only the Role may do that, but not read what
the namespace has; that is not checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mptune.errors import plural
from mptune.launch._kubernetes_api import KubernetesApi, Object
from mptune.launch._rayjob import KubernetesProfile, Manifest, Pool, owned_by_job, ray_job
from mptune.launch.base import Diagnosis, LaunchError, Submission, Unchecked, diagnose
from mptune.spec.schema import Resources

GPU = "nvidia.com/gpu"

RIGHTS = (
    *(("ray.io", "rayjobs", verb) for verb in ("create", "delete", "get", "list", "watch")),
    ("", "configmaps", "create"),
    ("networking.k8s.io", "networkpolicies", "create"),
    *(("", "pods", verb) for verb in ("create", "delete", "get", "list")),
    ("", "pods/log", "get"),
    ("", "events", "list"),
    ("kueue.x-k8s.io", "workloads", "list"),
)
"""Group, resource and verb of each request of the launcher, as in the Role mptune-launcher."""


def diagnose_cluster(profile: KubernetesProfile) -> Iterator[Diagnosis]:
    """Look at everything that a search needs, in the order in which it will need it."""
    try:
        api = KubernetesApi(profile.namespace, profile.context)
        version = api.server_version()
    except LaunchError as error:
        yield Diagnosis("wrong", "API server", str(error))
        return
    yield Diagnosis("ok", "API server", f"{api.server} is Kubernetes {version}")
    yield diagnose("your rights", partial(_rights, api))
    yield diagnose("KubeRay operator", partial(_operator, api))
    tag = f"{profile.image} is a tag, which may become another image; NAME@sha256:DIGEST pins it"
    yield Diagnosis("ok", "image", "pinned" if "@sha256:" in profile.image else tag)
    for what, manifest in _manifests(profile):
        yield diagnose(what, partial(_admission, api, manifest))
    if profile.queue:
        yield diagnose(f"queue {profile.queue}", partial(_queue, api, profile.queue))
    yield diagnose(f"volume {profile.artifacts}", partial(_volume, api, profile.artifacts))
    needed = {profile.database.secret: profile.database.key}
    needed |= {secret: variable for variable, secret in profile.secrets.items()}
    for secret, key in (needed | dict.fromkeys(profile.image_pull_secrets, "")).items():
        yield diagnose(f"secret {secret}", partial(_secret, api, secret, key))
    yield diagnose("GPUs of the quota", partial(_quota, api, profile))
    for pool in profile.pools:
        yield diagnose(f"nodes of pool {pool.name}", partial(_nodes, api, pool))
    host = profile.database.host
    yield diagnose(f"DNS name {host}", partial(_service, api, host, profile.database.port))
    yield diagnose("PostgreSQL", partial(_database, api, host))


def _rights(api: KubernetesApi) -> str:
    missing = [f"{verb} {resource}" for group, resource, verb in RIGHTS
               if not api.may(group, resource, verb)]  # fmt: skip
    if missing:
        raise LaunchError(
            f"you may not {', '.join(missing)}; have the Role mptune-launcher bound to your account"
        )
    return "all of the Role mptune-launcher"


def _operator(api: KubernetesApi) -> str:
    found = api.operators()
    if not found:
        raise LaunchError("no deployment has its label; install it")
    for deployment in found:
        if not deployment.get("status", {}).get("availableReplicas"):
            raise LaunchError(f"{deployment['metadata']['name']} is not available")
    images = [c["image"] for d in found for c in d["spec"]["template"]["spec"]["containers"]]
    return ", ".join(images)


def _manifests(profile: KubernetesProfile) -> Iterator[tuple[str, Manifest]]:
    """What a search would create, and the pods that KubeRay would create for it."""
    search = Submission("mptune-doctor", "", Resources(), Path("spec.yaml"))
    job = ray_job(profile, search)
    yield "RayJob", job
    yield from ((manifest["kind"], manifest) for manifest in owned_by_job(profile, search))
    cluster = job["spec"]["rayClusterSpec"]
    templates = {"pod of the head": cluster["headGroupSpec"]["template"]}
    for group in cluster["workerGroupSpecs"]:
        templates[f"pod of pool {group['groupName']}"] = group["template"]
    for what, template in templates.items():
        name = {"name": job["metadata"]["name"], "namespace": profile.namespace}
        meta = template["metadata"] | name
        yield what, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


def _admission(api: KubernetesApi, manifest: Manifest) -> str:
    api.create(manifest, dry_run=True)
    return "the API server accepts it"


def _queue(api: KubernetesApi, name: str) -> str:
    queue = api.read("LocalQueue", name)
    for condition in queue.get("status", {}).get("conditions") or ():
        if condition["type"] == "Active" and condition["status"] != "True":
            raise LaunchError(str(condition.get("message") or condition.get("reason")))
    return f"of the ClusterQueue {queue['spec']['clusterQueue']}"


def _volume(api: KubernetesApi, name: str) -> str:
    claim = api.read("PersistentVolumeClaim", name)
    if claim["status"].get("phase") == "Lost":
        raise LaunchError("its volume is lost")
    return f"{claim['status'].get('phase')}, {', '.join(claim['spec']['accessModes'])}"


def _secret(api: KubernetesApi, name: str, key: str) -> str:
    """Whether the Secret has this key; the values are not looked at."""
    secret = api.read("Secret", name)
    if key and key not in (secret.get("data") or {}):
        raise LaunchError(f"it has no key {key}")
    return f"has {key}" if key else "is there"


def _quota(api: KubernetesApi, profile: KubernetesProfile) -> str:
    wanted = sum(pool.gpus * pool.hosts * pool.min_gangs for pool in profile.pools)
    found = []
    for quota in api.quotas():
        status, key = quota.get("status", {}), f"requests.{GPU}"
        if key in status.get("hard", {}):
            left = int(status["hard"][key]) - int(status.get("used", {}).get(key, 0))
            if wanted > left:
                name = quota["metadata"]["name"]
                raise LaunchError(f"{name} has {left} left; the smallest search takes {wanted}")
            found.append(f"{wanted} of {left} that {quota['metadata']['name']} has left")
    return ", ".join(found) or "no limit"


def _nodes(api: KubernetesApi, pool: Pool) -> str:
    nodes = api.nodes(",".join(f"{key}={value}" for key, value in pool.node_labels.items()))
    fit = sum(int(n["status"]["allocatable"].get(GPU, 0)) >= pool.gpus for n in nodes)
    if fit:
        return f"{fit} of the right labels with {plural(pool.gpus, 'GPU')} or more"
    raise Unchecked(
        f"none has its labels and {plural(pool.gpus, 'GPU')} now; an autoscaler may add some"
    )


def _service(api: KubernetesApi, host: str, port: int) -> str:
    if "." in host:
        raise Unchecked("it is not of this namespace; the pods ask for it when they run")
    ports = [p["port"] for p in api.read("Service", host)["spec"].get("ports") or ()]
    if port not in ports:
        raise LaunchError(f"its Service has no port {port}")
    return f"is a Service with port {port}"


def _database(api: KubernetesApi, host: str) -> str:
    pods = api.pods(f"app.kubernetes.io/name={host}")
    if not pods:
        raise Unchecked("no pod of the namespace is called so; the driver asks for it at its start")
    for pod in pods:
        ready = {c["type"]: c["status"] for c in pod["status"].get("conditions") or ()}
        if ready.get("Ready") != "True":
            raise LaunchError(f"pod {pod['metadata']['name']} is not ready: {_why(pod)}")
    return "its pod is ready"


def _why(pod: Object) -> str:
    for container in pod["status"].get("containerStatuses") or ():
        if waiting := container.get("state", {}).get("waiting"):
            return " ".join(f"{waiting.get('reason')} {waiting.get('message', '')}".split())
    return str(pod["status"].get("phase"))
