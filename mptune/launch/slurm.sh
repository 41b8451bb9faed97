# The batch job of a search, after the #SBATCH lines and these settings that `slurm.py` writes:
# cpus and gpus of each node, others (nodes besides the first), services (the log of Ray's
# processes), exit_code (a file), and the command of the search as "$@".
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
echo $code > "$exit_code"
exit $code
