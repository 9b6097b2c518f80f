package kafka

import (
	"errors"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/eventlog"
)

// Error codes of the protocol (Kafka protocol guide, "Error Codes").
const (
	codeUnknownServerError         int16 = -1
	codeNone                       int16 = 0
	codeOffsetOutOfRange           int16 = 1
	codeCorruptMessage             int16 = 2
	codeUnknownTopicOrPartition    int16 = 3
	codeLeaderNotAvailable         int16 = 5
	codeNotLeaderOrFollower        int16 = 6
	codeRequestTimedOut            int16 = 7
	codeMessageTooLarge            int16 = 10
	codeOffsetMetadataTooLarge     int16 = 12
	codeCoordinatorLoadInProgress  int16 = 14
	codeCoordinatorNotAvailable    int16 = 15
	codeNotCoordinator             int16 = 16
	codeInvalidTopic               int16 = 17
	codeInvalidRequiredAcks        int16 = 21
	codeIllegalGeneration          int16 = 22
	codeInconsistentGroupProtocol  int16 = 23
	codeInvalidGroupID             int16 = 24
	codeUnknownMemberID            int16 = 25
	codeInvalidSessionTimeout      int16 = 26
	codeRebalanceInProgress        int16 = 27
	codeTopicAuthorizationFailed   int16 = 29
	codeGroupAuthorizationFailed   int16 = 30
	codeInvalidTimestamp           int16 = 32
	codeUnsupportedVersion         int16 = 35
	codeTopicAlreadyExists         int16 = 36
	codeInvalidPartitions          int16 = 37
	codeInvalidReplicationFactor   int16 = 38
	codeInvalidReplicaAssignment   int16 = 39
	codeInvalidConfig              int16 = 40
	codeInvalidRequest             int16 = 42
	codeUnsupportedForFormat       int16 = 43
	codePolicyViolation            int16 = 44
	codeOutOfOrderSequence         int16 = 45
	codeInvalidProducerEpoch       int16 = 47
	codeTransactionalIDAuthFailed  int16 = 53
	codeSASLAuthenticationFailed   int16 = 58
	codeUnknownProducerID          int16 = 59
	codeGroupIDNotFound            int16 = 69
	codeFetchSessionIDNotFound     int16 = 70
	codeFencedLeaderEpoch          int16 = 74
	codeUnknownLeaderEpoch         int16 = 75
	codeUnsupportedCompressionType int16 = 76
	codeMemberIDRequired           int16 = 79
	codeGroupMaxSizeReached        int16 = 81
	codeFencedInstanceID           int16 = 82
	codeInvalidRecord              int16 = 87
	codeThrottlingQuotaExceeded    int16 = 89
	codeUnknownTopicID             int16 = 100
)

// throttleMs is what a client that was refused for overload is asked to wait.
const throttleMs = 200

// face is which part of the protocol an error is shown in; the same Kind has other codes there.
type face int

const (
	faceData face = iota
	faceGroup
	faceAdmin
	// faceFetch is for partitions of a Fetch. Java's consumer knows few codes there (FetchCollector.handleInitializeErrors) and
	// throws at the application for any other one. NOT_LEADER_OR_FOLLOWER makes it look for the leader and come again.
	faceFetch
	faces
)

// kindCodes is the one table from Kinds to codes. An unknown outcome becomes a code that clients take for "may have
// happened": a producer retries it under the same sequence number, a group request is safe to repeat, and Kafka itself
// answers a timed-out group write with COORDINATOR_NOT_AVAILABLE.
var kindCodes = [...][faces]int16{
	errs.Invalid:         {codeInvalidRequest, codeInvalidRequest, codeInvalidRequest, codeUnknownServerError},
	errs.NotFound:        {codeUnknownTopicOrPartition, codeGroupIDNotFound, codeUnknownTopicOrPartition, codeUnknownTopicOrPartition},
	errs.Exists:          {codeInvalidRequest, codeUnknownMemberID, codeTopicAlreadyExists, codeUnknownServerError},
	errs.Conflict:        {codeOutOfOrderSequence, codeRebalanceInProgress, codeInvalidRequest, codeUnknownServerError},
	errs.Fenced:          {codeInvalidProducerEpoch, codeUnknownMemberID, codeInvalidRequest, codeUnknownServerError},
	errs.Compacted:       {codeOffsetOutOfRange, codeInvalidRequest, codeInvalidRequest, codeOffsetOutOfRange},
	errs.TooLarge:        {codeMessageTooLarge, codeGroupMaxSizeReached, codeInvalidRequest, codeUnknownServerError},
	errs.Denied:          {codeTopicAuthorizationFailed, codeGroupAuthorizationFailed, codeTopicAuthorizationFailed, codeTopicAuthorizationFailed},
	errs.Unauthenticated: {codeSASLAuthenticationFailed, codeSASLAuthenticationFailed, codeSASLAuthenticationFailed, codeTopicAuthorizationFailed},
	errs.Overloaded:      {codeRequestTimedOut, codeCoordinatorLoadInProgress, codeThrottlingQuotaExceeded, codeNotLeaderOrFollower},
	errs.Unavailable:     {codeNotLeaderOrFollower, codeCoordinatorNotAvailable, codeRequestTimedOut, codeNotLeaderOrFollower},
	errs.OutcomeUnknown:  {codeRequestTimedOut, codeCoordinatorNotAvailable, codeRequestTimedOut, codeNotLeaderOrFollower},
	errs.Corrupt:         {codeCorruptMessage, codeUnknownServerError, codeUnknownServerError, codeCorruptMessage},
	errs.Unsupported:     {codeUnsupportedVersion, codeUnsupportedVersion, codeUnsupportedVersion, codeUnknownServerError},
	errs.Internal:        {codeUnknownServerError, codeUnknownServerError, codeUnknownServerError, codeUnknownServerError},
}

// reasonCodes maps the reasons that the event log gives, in errs.Error.Code.
var reasonCodes = map[string]int16{
	"CORRUPTBATCH": codeCorruptMessage, "OLDFORMAT": codeUnsupportedForFormat, "INVALIDRECORD": codeInvalidRecord,
	"TRANSACTION": codeTransactionalIDAuthFailed, "COMPRESSION": codeUnsupportedCompressionType,
	"INVALIDTIMESTAMP": codeInvalidTimestamp, "UNKNOWNPRODUCER": codeUnknownProducerID, "OUTOFORDER": codeOutOfOrderSequence,
	"REPLICATIONFACTOR": codeInvalidReplicationFactor, "REPLICAASSIGNMENT": codeInvalidReplicaAssignment,
	"INVALIDACKS":      codeInvalidRequiredAcks,
	eventlog.CodeStale: codePolicyViolation,
	"INVALIDTOPIC":     codeInvalidTopic, "INVALIDPARTITIONS": codeInvalidPartitions, "INVALIDCONFIG": codeInvalidConfig,
	eventlog.CodeUnknownMember: codeUnknownMemberID, eventlog.CodeIllegalGeneration: codeIllegalGeneration,
	eventlog.CodeFencedInstance: codeFencedInstanceID, eventlog.CodeInconsistent: codeInconsistentGroupProtocol,
	eventlog.CodeGroupFull: codeGroupMaxSizeReached, eventlog.CodeRebalancing: codeRebalanceInProgress,
	eventlog.CodeInvalidGroup: codeInvalidGroupID, eventlog.CodeInvalidSession: codeInvalidSessionTimeout,
	eventlog.CodeMetadataTooLarge: codeOffsetMetadataTooLarge,
}

// codeOf returns the code for an error.
func codeOf(err error, f face) int16 {
	if err == nil {
		return codeNone
	}
	var e *errs.Error
	if errors.As(err, &e) && f != faceFetch {
		if c, ok := reasonCodes[e.Code]; ok {
			return c
		}
	}
	k := errs.KindOf(err)
	if int(k) >= len(kindCodes) || k == 0 {
		return codeUnknownServerError
	}
	return kindCodes[k][f]
}

// fetchCode returns the code for the error of finding a topic, in the version of a Fetch.
func fetchCode(err error, version int16) int16 {
	code := codeOf(err, faceFetch)
	var e *errs.Error
	if errors.As(err, &e) && e.Code == "INVALIDTOPIC" {
		// No topic can have that name.
		code = codeUnknownTopicOrPartition
	}
	if code == codeUnknownTopicOrPartition && version >= 13 {
		return codeUnknownTopicID
	}
	return code
}

// throttle returns how long to ask the client to wait because of an error.
func throttle(err error) int32 {
	if errs.Is(err, errs.Overloaded) {
		return throttleMs
	}
	return 0
}

// text returns an error's message for fields that may be null.
func text(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	return &s
}
