#!/bin/bash
{# The batch job of a search as a Jinja template; `p` is the `Slurm` profile. -#}
#SBATCH --job-name=mptune-{{ name }}
#SBATCH --nodes={{ p.nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ p.cpus_per_node }}
{% if p.gpus_per_node %}
#SBATCH --gpus-per-node={{ p.gpus_per_node }}
{% endif %}
#SBATCH --time={{ p.time_limit }}
{% if p.partition %}
#SBATCH --partition={{ p.partition }}
{% endif %}
{% if p.account %}
#SBATCH --account={{ p.account }}
{% endif %}
#SBATCH --output={{ log }}
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{{ p.grace_s }}
#SBATCH --requeue
{% for option in p.options %}
#SBATCH {{ option }}
{% endfor %}
set -u
{% for line in p.setup %}
{{ line }}
{% endfor %}
# Of each node; `others` is the number of nodes besides the first.
cpus={{ p.cpus_per_node }} gpus={{ p.gpus_per_node }} others={{ p.nodes - 1 }}
# The log of Ray's processes, and the file for the exit code.
services={{ services }}
exit_code={{ exit_code }}
set -- {{ command }}

# Other users of these nodes can reach the ports, so Ray requires this job's own token.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 10000))
folder=/tmp/ray-$SLURM_JOB_ID
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$address" --port=$port \
    --temp-dir=$folder --include-dashboard=false \
    --ray-client-server-port=$((port + 10000)) --dashboard-agent-listen-port=0 \
    --num-cpus="$cpus" --num-gpus="$gpus" >> "$services" 2>&1 &
ray_head=$!
ray_others=
for attempt in $(seq 60); do
  ray health-check --address "$address:$port" > /dev/null 2>&1 && break
  sleep 1
done
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="$head" \
    ray start --block --address="$address:$port" --dashboard-agent-listen-port=0 \
      --num-cpus="$cpus" --num-gpus="$gpus" >> "$services" 2>&1 &
  ray_others=$!
fi
# A trial that needs all nodes would be refused while a node is still starting.
python - "$address:$port" $((others + 1)) << 'END' || exit 1
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    if time.monotonic() > deadline:
        sys.exit("Ray did not start on every node within 5 minutes")
    time.sleep(0.5)
END

# Shortly before the time is up, the trials write checkpoints and the job is queued again.
again=
trap 'again=yes; kill -TERM $driver' USR1
trap 'kill -TERM $driver' TERM
"$@" --address "$address:$port" &
driver=$!
wait $driver
code=$?
# A trap ends the first wait while the driver still writes.
while kill -0 $driver 2> /dev/null; do wait $driver; code=$?; done
# The head ends last, because the other nodes report to it when they leave.
for service in $ray_others $ray_head; do kill -TERM $service; wait $service; done 2> /dev/null
rm -rf "$folder"
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID" && exit 0; fi
echo "$SLURM_JOB_ID $code" > "$exit_code"
exit $code
